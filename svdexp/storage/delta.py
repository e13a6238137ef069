"""A mean of the experts of a stack, and factors of what tells each from it: W_e ≈ W̄ + A_e B_e (D²-MoE, 2502.17298).

W̄ is the mean of the experts' matrices by their Fisher information F_e, entry by entry: the minimiser of
Σ_e Σ_ij F_e,ij (W_e,ij − W̄_ij)². The factors are whatever the method's weighting decomposes W_e − W̄ into. Matrices
that are no expert's are plain factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from svdexp.calibration import Statistics
from svdexp.models.factors import Factors, filled, low_rank_layer
from svdexp.models.matrices import Matrix
from svdexp.models.portable.svdexp_delta import DeltaLinear
from svdexp.runtime.errors import require
from svdexp.storage.base import NUMBER_BITS, Kept, Storage


@final
@dataclass(frozen=True)
class DeltaStorage(Storage):
    """What experts share, once for a stack, and a pair of factors for each."""

    def require_use(self, matrices: Sequence[Matrix]) -> None:
        """Raise UserError where no expert is among `matrices`."""
        require(
            any(matrix.rivals for matrix in matrices),
            "storage=delta shares a mean among experts, and no matrix that targets selects is an expert's; for models "
            "without experts there is method=svd_llm",
        )

    @property
    def needs_of_experts(self) -> tuple[str, ...]:
        """The weights of the mean."""
        return ("fisher_sum",)

    def common(self, weights: Sequence[torch.Tensor], statistics: Sequence[Statistics]) -> Kept:
        """W̄, in the number format of the weights."""
        return {"base": fisher_mean(weights, [found["fisher_sum"] for found in statistics]).to(weights[0].dtype)}

    @property
    def split(self) -> str:
        """W_e − W̄."""
        return "what the Fisher-weighted mean of the experts leaves"

    def divides(self, matrix: Matrix) -> bool:
        """Experts."""
        return matrix.rivals is not None

    def target(
        self, W: torch.Tensor, C: torch.Tensor | None = None, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept | None]:
        """W − W̄, and W̄; of what is no expert's all of W."""
        return (W, None) if kept is None else (W.double() - kept["base"].to(W.device).double(), kept)

    def bits(self, rank: int, m: int, n: int) -> int:
        """Both factors."""
        return rank * (m + n) * NUMBER_BITS

    def common_bits(self, m: int, n: int) -> int:
        """W̄."""
        return m * n * NUMBER_BITS

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> nn.Module:
        """A layer of W̄ + A B; two linear layers of what is no expert's."""
        if kept is None:
            return low_rank_layer(factors, bias, like)
        m, n = like.shape
        layer = DeltaLinear(n, factors.rank, m, False, dtype=like.dtype, device="meta")
        filled(layer, {"rank_in.weight": factors.B, "rank_out.weight": factors.A}, like)
        layer.alone(kept["base"].to(like.device, like.dtype))
        return layer


def fisher_mean(weights: Sequence[torch.Tensor], information: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_e F_e W_e / Σ_e F_e of matrices (m, n) and as many of squared gradients, entry by entry; float64.

    Where nothing had a gradient it is the plain mean.
    """
    weighted = total = plain = torch.zeros((), dtype=torch.float64, device=weights[0].device)
    for W, F in zip(weights, information, strict=True):
        weighted, total, plain = weighted + F.double() * W.double(), total + F.double(), plain + W.double()
    return torch.where(total > 0, weighted / total.where(total > 0, 1), plain / len(weights))
