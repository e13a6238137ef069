"""Plain factors: A (m, r) and B (r, n) in the model's own number format, r (m + n) numbers."""

from dataclasses import dataclass
from typing import final

import torch

from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.storage.base import NUMBER_BITS, Kept, Storage


@final
@dataclass(frozen=True)
class FactorStorage(Storage):
    """The plain pair of factors."""

    def bits(self, rank: int, m: int, n: int) -> int:
        """r (m + n) numbers."""
        return rank * (m + n) * NUMBER_BITS

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> LowRankLinear:
        """Two linear layers."""
        return low_rank_layer(factors, bias, like)


def largest_rank(m: int, n: int) -> int:
    """The largest rank whose plain factors are smaller than the dense (m, n) matrix; 0 where none is."""
    return (m * n - 1) // (m + n)
