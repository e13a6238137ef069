"""Four routes to one optimum: the truncated SVD of P R, given P (m, n) and C = R Rᵀ.

They differ in cost and in what they ask of C. `eigh` is the cheapest and asks nothing: with P R = U Σ Vᵀ,
U comes from the symmetric eigenproblem P C Pᵀ = U Σ² Uᵀ on the smaller side of P (P = Q T where m > n), and
the right factor is Uᵀ P, so a rank-deficient C is no obstacle. The price of squaring is that each singular value
is accurate to about 1e-8 of the largest. The others are the papers' own, for comparison.
"""

from collections.abc import Callable

import torch

from svdexp.schema import Numerics

# Below this ratio of diagonal entries of a Cholesky factor of Pᵀ P, QR: squaring would cost half of all digits.
CONDITION = 1e-5

# U (m, k) with orthonormal columns, Σ (k,) descending, and the right factor (k, n); U · right = P at k = min(m, n).
Solution = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def solve(P: torch.Tensor, C: torch.Tensor | None, numerics: Numerics) -> Solution:
    """The decomposition of P under C, which is (n, n), (n,) for a diagonal, or None for the identity."""
    if numerics is Numerics.eigh:
        return _smaller_side(P, C)
    if numerics is Numerics.output_eigh:
        return _output_covariance(P, C)
    C = torch.ones_like(P[0]) if C is None else C
    C = C.diag() if C.ndim == 1 else C
    return _cholesky(P, C) if numerics is Numerics.cholesky else _double_svd(P, C)


def _smaller_side(P: torch.Tensor, C: torch.Tensor | None) -> Solution:
    small, lift = reduced(P) if P.shape[0] > P.shape[1] else (P, lambda U: U)
    U, spectrum = _descending(*torch.linalg.eigh(_covariance(small, C)))
    return lift(U), spectrum, U.mT @ small


def reduced(P: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """T (n, n) with P = Q T for orthonormal Q (m, n), m > n, and the function U ↦ Q U.

    T is the Cholesky factor of Pᵀ P, several times faster than a QR factorisation, which serves where P is too
    ill-conditioned for its square.
    """
    T, failed = torch.linalg.cholesky_ex(P.mT @ P, upper=True)
    diagonal = T.diagonal()
    if not failed and bool(diagonal.min() > CONDITION * diagonal.max()):
        return T, lambda U: P @ torch.linalg.solve_triangular(T, U, upper=True)
    Q, T = torch.linalg.qr(P)
    return T, lambda U: Q @ U


def _output_covariance(P: torch.Tensor, C: torch.Tensor | None) -> Solution:
    U, spectrum = _descending(*torch.linalg.eigh(_covariance(P, C)))
    k = min(P.shape)
    return U[:, :k], spectrum[:k], U[:, :k].mT @ P


def _cholesky(P: torch.Tensor, C: torch.Tensor) -> Solution:
    R = torch.linalg.cholesky(C)
    U, spectrum, Vh = torch.linalg.svd(P @ R, full_matrices=False)
    return U, spectrum, torch.linalg.solve_triangular(R, spectrum[:, None] * Vh, upper=False, left=False)


def _double_svd(P: torch.Tensor, C: torch.Tensor) -> Solution:
    Q, eigenvalues, _ = torch.linalg.svd(C)
    root = eigenvalues.sqrt()
    U, spectrum, Vh = torch.linalg.svd(P @ Q * root, full_matrices=False)
    return U, spectrum, (spectrum[:, None] * Vh / root) @ Q.mT


def _covariance(P: torch.Tensor, C: torch.Tensor | None) -> torch.Tensor:
    """P C Pᵀ."""
    if C is None:
        return P @ P.mT
    return (P * C if C.ndim == 1 else P @ C) @ P.mT


def _descending(eigenvalues: torch.Tensor, U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors, and the roots of their eigenvalues, both the largest first instead of last."""
    return U.flip(1), eigenvalues.flip(0).clamp_min(0).sqrt()
