"""One ratio for every matrix: SVD-LLM (arXiv 2403.07378), r = ⌊ρ m n / (m + n)⌋ for plain factors."""

from dataclasses import dataclass
from typing import ClassVar

from svdexp.allocation.budget import Aligned, Budget, SpectralEvidence
from svdexp.models.matrices import Ranks


@dataclass(frozen=True)
class Uniform(Aligned):
    """Each layer keeps the largest rank whose bits fit its own share; rounding left-overs are spent after."""

    needs_spectra: ClassVar[bool] = False

    def __call__(self, budget: Budget, evidence: SpectralEvidence) -> Ranks:
        """`evidence` is not looked at."""
        return self.ranks(budget)

    def ranks(self, budget: Budget) -> Ranks:
        """The same, without any."""
        budget = budget.aligned(self.rank_align)
        return budget.fill(self._shares(budget))

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where a layer's own share is too small for its lowest rank."""
        self._shares(budget.aligned(self.rank_align))

    def _shares(self, budget: Budget) -> Ranks:
        return {name: budget.largest_rank(name, budget.ratio * budget.dense(name)) for name in budget.shapes}
