"""One decomposition serves every rank: the weighted optimum at rank r is its first r components.

With G = Lᵀ L and C = R Rᵀ, let L W R = U Σ Vᵀ. By Eckart-Young the minimiser of ‖L (W − A B) R‖_F is
A B = L⁻¹ U_r U_rᵀ L W = W R V_r V_rᵀ R⁻¹: a projection on either side, in which nothing of the other side is inverted.
smaller_side.py takes the smaller one. solvers.py has the papers' routes, given L W with L the Cholesky factor of G.
"""

import logging
from dataclasses import dataclass

import torch

from svdexp.factorisation.moments import definite
from svdexp.factorisation.smaller_side import on_smaller_side
from svdexp.factorisation.solvers import solve
from svdexp.factorisation.weighting import Metric
from svdexp.models.factors import Factors
from svdexp.schema import Numerics, SigmaFuse

log = logging.getLogger(__name__)

# Stands in for a zero divisor; the dividend is then zero as well.
TINY = 1e-150
# Singular values up to this share of the largest are rounding errors: divided by them, noise would be infinite.
ZERO = 1e-8


@dataclass(frozen=True)
class Decomposition:
    """W = left · right, ordered so that the first r components are the weighted optimum at rank r.

    Attributes:
        left: (m, k), k = min(m, n).
        right: (k, n).
        spectrum: (min(m, n),) singular values of L W R, descending; the squared error at rank r is
            the sum of the squares of spectrum[r:].
        damping: the multiples of the identity that were added to G and C, (2,).
    """

    left: torch.Tensor
    right: torch.Tensor
    spectrum: torch.Tensor
    damping: torch.Tensor

    def truncate(self, rank: int, fuse: SigmaFuse = SigmaFuse.balanced) -> Factors:
        """The optimum at `rank` in float64; `fuse` says which factor carries the singular values.

        To the last bit it is the first `rank` components of the optimum at any larger rank.
        """
        # All components are scaled, because the order in which a norm is summed depends on how many there are.
        A, B = self.left.double(), self.right.double()  # L⁻¹ U and Σ Vᵀ R⁻¹
        sigma = self.spectrum[: len(B)].to(A)
        counts = sigma > ZERO * sigma[:1]
        balanced = (B.norm(dim=1) / A.norm(dim=0).clamp_min(TINY)).sqrt()
        scale = {
            SigmaFuse.V: torch.ones_like(sigma),
            SigmaFuse.U: torch.where(counts, sigma, balanced),
            SigmaFuse.UV: torch.where(counts, sigma.sqrt(), balanced),
            SigmaFuse.balanced: balanced,
        }[fuse].clamp_min(TINY)
        return Factors(A[:, :rank] * scale[:rank], B[:rank] / scale[:rank, None])

    def error(self, rank: int | None) -> float:
        """The share of the weighted energy ‖L W R‖² that is lost at `rank`; None loses nothing."""
        if rank is None:
            return 0.0
        energy = self.spectrum.square()
        return float(energy[rank:].sum() / energy.sum().clamp_min(1e-300))

    def keep(self, rank: int | None) -> "Decomposition":
        """Without the components beyond `rank`, for storage; the spectrum stays whole.

        Copies: the whole decomposition would stay in memory behind views.
        """
        return Decomposition(self.left[:, :rank].clone(), self.right[:rank].clone(), self.spectrum, self.damping)


def decompose(
    W: torch.Tensor, metric: Metric, dtype: torch.dtype = torch.float32, numerics: Numerics = Numerics.eigh
) -> Decomposition:
    """Decompose W (m, n) under `metric`, on W's device.

    Args:
        W: the weight, (m, n).
        metric: G and C; in place of the one on the larger side of W perhaps what W sees of it, but for other numerics.
        dtype: number format of `left` and `right`; the computation and the spectrum are float64.
        numerics: the route to the one optimum.

    Raises:
        UserError: a second moment is not finite.
    """
    if takes_smaller_side(numerics, *W.shape):
        left, right, spectrum, damping = on_smaller_side(W, metric, dtype)
        return Decomposition(left, right, spectrum, torch.tensor(damping))
    C, _, c_damping = definite(metric.right)
    if numerics is Numerics.cholesky and c_damping > 0:
        log.warning("Cholesky failed on a second moment of shape %s; using the eigendecomposition", tuple(W.shape))
        return decompose(W, metric, dtype)
    _, root, g_damping = definite(metric.left)
    U, spectrum, right = solve(root.transposed_times(W.double()), C, numerics)
    return Decomposition(
        left=root.transposed_divides(U).to(dtype),
        right=right.to(dtype),
        spectrum=spectrum,
        damping=torch.tensor([g_damping, c_damping]),
    )


def takes_smaller_side(numerics: Numerics, m: int, n: int) -> bool:
    """Whether this route to the optimum for W (m, n) goes over its smaller side; the outputs are that where m ≤ n."""
    return numerics is Numerics.eigh or (numerics is Numerics.output_eigh and m <= n)
