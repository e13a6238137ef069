"""One decomposition serves every rank: the weighted optimum at rank r is its first r components.

With G = Lᵀ L and C = R Rᵀ, let L W R = U Σ Vᵀ. By Eckart-Young the minimiser of ‖L (W − A B) R‖_F is
A B = L⁻¹ U_r U_rᵀ L W: a projection, in which neither R nor its inverse appears. solvers.py finds U; this file
weighs by L and takes it off again, with L the Cholesky factor of G. Everything here is float64.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from svdexp.factorisation.solvers import solve
from svdexp.factorisation.weighting import Metric
from svdexp.models.factors import Factors
from svdexp.runtime.errors import UserError
from svdexp.schema import Numerics, SigmaFuse

log = logging.getLogger(__name__)

# Stands in for a zero divisor; the dividend is then zero as well.
TINY = 1e-150


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
        scale = {
            SigmaFuse.V: torch.ones_like(sigma),
            SigmaFuse.U: sigma,
            SigmaFuse.UV: sigma.sqrt(),
            SigmaFuse.balanced: (B.norm(dim=1) / A.norm(dim=0).clamp_min(TINY)).sqrt(),
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
        metric: G (m, m) or (m,), and C (n, n) or (n,).
        dtype: number format of `left` and `right`; the computation and the spectrum are float64.
        numerics: the route to the one optimum.

    Raises:
        UserError: a second moment is not finite.
    """
    C, c_damping = _positive_definite(metric.right)
    G, g_damping = _positive_definite(metric.left)
    P, unweigh = _weigh(W.double(), G)
    if numerics is Numerics.cholesky and c_damping > 0:
        log.warning("Cholesky failed on a second moment of shape %s; using the eigendecomposition", tuple(W.shape))
        numerics = Numerics.eigh
    U, spectrum, right = solve(P, C, numerics)
    return Decomposition(
        left=unweigh(U).to(dtype),
        right=right.to(dtype),
        spectrum=spectrum,
        damping=torch.tensor([g_damping, c_damping]),
    )


def _weigh(W: torch.Tensor, G: torch.Tensor | None) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """L W, and the function that takes L off again: X ↦ L⁻¹ X."""
    if G is None:
        return W, lambda X: X
    if G.ndim == 1:
        root = G.sqrt()[:, None]
        return root * W, lambda X: X / root
    L = torch.linalg.cholesky(G).mT
    return L @ W, lambda X: torch.linalg.solve_triangular(L, X, upper=True)


def _positive_definite(moment: torch.Tensor | None) -> tuple[torch.Tensor | None, float]:
    """The second moment in float64 and the multiple of the identity it took to make it positive definite.

    Float32 sums of a rank-deficient moment have eigenvalues of either sign near zero. The damping starts at
    1e-12 of the mean eigenvalue, so real but small directions beside huge outliers survive. A moment of zeros
    (an expert without tokens) becomes the identity: then all weights count the same.
    """
    if moment is None:
        return None, 0.0
    moment = moment.double()
    diagonal = moment if moment.ndim == 1 else moment.diagonal()
    identity = torch.ones_like(moment) if moment.ndim == 1 else torch.eye(len(moment)).to(moment)
    mean = float(diagonal.mean())
    if not math.isfinite(mean):
        raise UserError("calibration: a second moment overflowed; the activations are too large, try precision=float32")
    if mean <= 0:
        return identity, 1.0
    damping = 0.0
    while not _is_positive_definite(moment + damping * identity):
        damping = 10 * damping if damping else 1e-12 * mean
    return moment + damping * identity, damping


def _is_positive_definite(moment: torch.Tensor) -> bool:
    if moment.ndim == 1:
        return bool((moment > 0).all())
    return not torch.linalg.cholesky_ex(moment).info.item()
