"""One decomposition serves every rank: the weighted optimum at rank r is its first r components.

With G = Lᵀ L and C = R Rᵀ, let L W R = U Σ Vᵀ. By Eckart-Young the minimiser of ‖L (W − A B) R‖_F is
A B = L⁻¹ U_r U_rᵀ L W: a projection, in which neither R nor its inverse appears. U is found from the
symmetric eigenproblem S = L W C Wᵀ Lᵀ = U Σ² Uᵀ on the smaller side of W (thin QR of L W where m > n). So a
rank-deficient C is no obstacle; a little damping only decides what directions the calibration never saw are
worth. Everything here is float64; squaring leaves each singular value accurate to about 1e-8 of the largest.
"""

import math
from dataclasses import dataclass

import torch

from svdexp.errors import UserError
from svdexp.factorisation.weighting import Metric
from svdexp.models.low_rank import Factors


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

    def truncate(self, rank: int) -> Factors:
        """The optimum at `rank`, its scale shared evenly between both factors.

        Balanced factors keep the rounding of 16-bit storage and the size of the intermediate activation
        in check when singular values span many orders of magnitude.
        """
        A, B = self.left[:, :rank].double(), self.right[:rank].double()
        scale = (B.norm(dim=1) / A.norm(dim=0).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        return Factors(A * scale, B / scale[:, None])

    def error(self, rank: int | None) -> float:
        """The share of the weighted energy ‖L W R‖² that is lost at `rank`; None loses nothing."""
        if rank is None:
            return 0.0
        energy = self.spectrum.square()
        return float(energy[rank:].sum() / energy.sum().clamp_min(1e-300))

    def keep(self, rank: int | None) -> "Decomposition":
        """Without the components beyond `rank`, for storage; the spectrum stays whole."""
        return Decomposition(self.left[:, :rank], self.right[:rank], self.spectrum, self.damping)


def decompose(W: torch.Tensor, metric: Metric, dtype: torch.dtype = torch.float32) -> Decomposition:
    """Decompose W (m, n) under `metric`, on W's device.

    Args:
        W: the weight, (m, n).
        metric: G (m, m) and C (n, n).
        dtype: number format of `left` and `right`; the computation and the spectrum are float64.

    Raises:
        UserError: a second moment is not finite.
    """
    C, c_damping = _positive_definite(metric.right)
    G, g_damping = _positive_definite(metric.left)
    P = W.double()
    L = None
    if G is not None:
        L = torch.linalg.cholesky(G).mH
        P = L @ P
    Q, P = torch.linalg.qr(P) if P.shape[0] > P.shape[1] else (None, P)
    eigenvalues, U = torch.linalg.eigh(P @ P.mT if C is None else P @ C @ P.mT)
    eigenvalues, U = eigenvalues.flip(0), U.flip(1)
    left = U if Q is None else Q @ U
    if L is not None:
        left = torch.linalg.solve_triangular(L, left, upper=True)
    return Decomposition(
        left=left.to(dtype),
        right=(U.mT @ P).to(dtype),
        spectrum=eigenvalues.clamp_min(0).sqrt(),
        damping=torch.tensor([g_damping, c_damping]),
    )


def _positive_definite(moment: torch.Tensor | None) -> tuple[torch.Tensor | None, float]:
    """The second moment in float64 and the multiple of the identity it took to make Cholesky succeed.

    Float32 sums of a rank-deficient moment have eigenvalues of either sign near zero. The damping starts at
    1e-12 of the mean eigenvalue, so real but small directions beside huge outliers survive. A moment of zeros
    (an expert without tokens) becomes the identity: then all weights count the same.
    """
    if moment is None:
        return None, 0.0
    moment = moment.double()
    identity = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    mean = float(moment.diagonal().mean())
    if not math.isfinite(mean):
        raise UserError("calibration: a second moment overflowed; the activations are too large, try precision=float32")
    if mean <= 0:
        return identity, 1.0
    damping = 0.0
    while torch.linalg.cholesky_ex(moment + damping * identity).info.item():
        damping = 10 * damping if damping else 1e-12 * mean
    return moment + damping * identity, damping
