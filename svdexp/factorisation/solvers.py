"""The papers' routes to one optimum: the truncated SVD of P R, given P (m, n) and C = R Rᵀ (smaller_side.py has ours).

They differ in cost and in what they ask of C.
"""

import torch

from svdexp.factorisation.eigen import eigh
from svdexp.factorisation.moments import through
from svdexp.schema import Numerics

# U (m, k) with orthonormal columns, Σ (k,) descending, and the right factor (k, n); U · right = P at k = min(m, n).
Solution = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def solve(P: torch.Tensor, C: torch.Tensor | None, numerics: Numerics) -> Solution:
    """The decomposition of P under C, which is (n, n), (n,) for a diagonal, or None for the identity."""
    if numerics is Numerics.output_eigh:
        return _output_covariance(P, C)
    C = torch.ones_like(P[0]) if C is None else C
    C = C.diag() if C.ndim == 1 else C
    return _cholesky(P, C) if numerics is Numerics.cholesky else _double_svd(P, C)


def _output_covariance(P: torch.Tensor, C: torch.Tensor | None) -> Solution:
    U, spectrum = _descending(*eigh(through(P, C)))
    k = min(P.shape)
    return U[:, :k], spectrum[:k], U[:, :k].mT @ P


def _cholesky(P: torch.Tensor, C: torch.Tensor) -> Solution:
    R = torch.linalg.cholesky(C)
    U, spectrum, Vh = torch.linalg.svd(P @ R, full_matrices=False)
    return U, spectrum, torch.linalg.solve_triangular(R, spectrum[:, None] * Vh, upper=False, left=False)


def _double_svd(P: torch.Tensor, C: torch.Tensor) -> Solution:
    # the first of the paper's two: of a symmetric matrix in a third of the time of a general one
    eigenvalues, Q = eigh(C)
    root = eigenvalues.abs().sqrt()  # as singular values are; rounding leaves the least of either sign
    U, spectrum, Vh = torch.linalg.svd(P @ Q * root, full_matrices=False)
    return U, spectrum, (spectrum[:, None] * Vh / root) @ Q.mT


def _descending(eigenvalues: torch.Tensor, U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors, and the roots of their eigenvalues, both the largest first instead of last."""
    return U.flip(1), eigenvalues.flip(0).clamp_min(0).sqrt()
