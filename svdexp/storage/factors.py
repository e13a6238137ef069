"""Plain factors: A (m, r) and B (r, n) in the model's own number format, r (m + n) numbers."""

from dataclasses import dataclass
from typing import Any

import torch

from svdexp.models.low_rank import Factors, LowRankLinear
from svdexp.storage.base import NUMBER_BITS


@dataclass(frozen=True)
class FactorStorage:
    """The plain pair of factors."""

    def bits(self, rank: int, m: int, n: int) -> int:
        """r (m + n) numbers."""
        return rank * (m + n) * NUMBER_BITS

    def layer(self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> LowRankLinear:
        """Two linear layers."""
        return LowRankLinear.from_factors(factors, bias, like)


def empty_factor_layer(m: int, n: int, rank: int, bias: bool, **kwargs: Any) -> LowRankLinear:
    """A layer of the right shapes for a checkpoint to fill."""
    return LowRankLinear(n, rank, m, bias, **kwargs)
