"""A truncated SVD whose gradient stays finite: Dobi-SVD's stabilised backward pass (arXiv 2502.02723, §3.1, App. A).

The gradient of singular vectors holds 1 / (σᵢ² − σⱼ²), which is infinite for equal singular values and noise for
nearly equal ones. With q = σⱼ/σᵢ ≤ 1 it is (1/σᵢ²) (1 + q² + q⁴ + …), and for close pairs only the first TERMS terms
are kept, N / σᵢ² where σᵢ = σⱼ.

Ours: what is close is relative to the number format, because the reference's |σᵢ − σⱼ| ≤ 1e-10 never holds between
different float32 numbers of ordinary size, and zero singular values pass no gradient to their vectors.
"""

from typing import Any

import torch

TERMS = 11  # N of the paper
# Singular values below this share of the largest count as zero: the square root of what float64 resolves in A Aᵀ.
ZERO = 1e-7


class TruncatedSVD(torch.autograd.Function):
    """U (…, t, q), Σ (…, q) and V (…, m, q) of A (…, t, m): the q largest, Σ descending.

    The gradient is that of a matrix of rank q, as in the reference: exact where the discarded singular values are
    zero, or where q = min(t, m).
    """

    @staticmethod
    def forward(ctx: Any, A: torch.Tensor, q: int, randomised: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`randomised` takes the paper's range finder (two power iterations) instead of an eigendecomposition."""
        U, S, V = torch.svd_lowrank(A, q=q, niter=2) if randomised else singular_triplets(A, q)
        ctx.save_for_backward(U, S, V)
        return U, S, V

    @staticmethod
    def backward(ctx: Any, gU: torch.Tensor, gS: torch.Tensor, gV: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Townsend's formula (Differentiating the singular value decomposition, 2016, eq. 31)."""
        U, S, V = ctx.saved_tensors
        F, inverse = inverse_gaps(S), inverses(S)
        left, right = U.mT @ gU, V.mT @ gV
        core = F * (left - left.mT) * S[..., None, :] + S[..., :, None] * F * (right - right.mT) + torch.diag_embed(gS)
        # outside the span of U and V, where a matrix of rank q has nothing but zeros
        beyond_U = (gU - U @ left) * inverse[..., None, :]
        beyond_V = (gV - V @ right) * inverse[..., None, :]
        return (U @ core + beyond_U) @ V.mT + U @ beyond_V.mT, None, None


def singular_triplets(A: torch.Tensor, q: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The q largest singular triplets of A (…, t, m), by an eigendecomposition in float64 on the smaller side.

    Several times faster than a full SVD; singular values are accurate to ZERO of the largest, and below that they,
    and the vectors on the larger side, are zero.
    """
    D = A.double()
    wide = A.shape[-2] <= A.shape[-1]
    D = D if wide else D.mT
    energy, vectors = torch.linalg.eigh(D @ D.mT)
    near, S = vectors.flip(-1)[..., :q], energy.flip(-1)[..., :q].clamp_min(0).sqrt()
    S = torch.where(ZERO * S[..., :1] < S, S, 0.0)
    far = D.mT @ near * inverses(S)[..., None, :]
    U, V = (near, far) if wide else (far, near)
    return U.to(A.dtype), S.to(A.dtype), V.to(A.dtype)


def inverses(S: torch.Tensor) -> torch.Tensor:
    """1/σ, and 0 where σ is 0."""
    return torch.where(S > 0, 1 / S, 0.0)


def inverse_gaps(S: torch.Tensor) -> torch.Tensor:
    """F (…, q, q) with F_ij = 1 / (σⱼ² − σᵢ²) for i ≠ j, the truncated series where the two are close."""
    a, b = S[..., :, None], S[..., None, :]
    larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
    inverse = inverses(larger)
    gap = (larger - smaller) * (larger + smaller) * inverse.square()  # 1 − q²
    square, series = (smaller * inverse).square(), torch.ones_like(gap)
    for _ in range(TERMS - 1):
        series = 1 + square * series
    close = gap <= torch.finfo(S.dtype).eps ** 0.5
    magnitude = torch.where(close, series, 1 / torch.where(close, 1.0, gap)) * inverse.square()
    q = S.shape[-1]
    above = torch.ones(q, q, device=S.device, dtype=S.dtype).tril(-1)  # σⱼ ≥ σᵢ where j < i
    return magnitude * (above - above.mT)
