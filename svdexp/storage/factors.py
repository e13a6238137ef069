"""Plain factors: A (m, r) and B (r, n) in the model's own number format, r (m + n) numbers."""

from dataclasses import dataclass

import torch

from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.portable.svdexp_layers import LowRankLinear
from svdexp.storage.base import NUMBER_BITS, Storage


@dataclass(frozen=True)
class FactorStorage(Storage):
    """The plain pair of factors."""

    def bits(self, rank: int, m: int, n: int) -> int:
        """r (m + n) numbers."""
        return rank * (m + n) * NUMBER_BITS

    def layer(self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> LowRankLinear:
        """Two linear layers."""
        return low_rank_layer(factors, bias, like)
