"""One ratio for every matrix: SVD-LLM (arXiv 2403.07378), r = ⌊ρ m n / (m + n)⌋ for plain factors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from svdexp.allocation.budget import Budget, Ranks


@dataclass(frozen=True)
class Uniform:
    """Each layer keeps the largest rank whose bits fit its own share; rounding left-overs are spent after."""

    needs_spectra: ClassVar[bool] = False

    def __call__(self, budget: Budget, spectra: Mapping[str, torch.Tensor]) -> Ranks:
        """`spectra` is not looked at."""
        return budget.fill(
            {name: budget.largest_rank(name, budget.ratio * budget.dense(name)) for name in budget.shapes}
        )
