"""No matrix is factorised: what a storage makes of a whole one, such as plain quantisation, to compare with."""

from dataclasses import dataclass
from typing import ClassVar

from svdexp.allocation.budget import Budget, SpectralEvidence
from svdexp.models.matrices import Ranks
from svdexp.runtime.errors import UserError


@dataclass(frozen=True)
class Whole:
    """Every matrix without a rank. The storage decides the size, which must be within the ratio."""

    needs_spectra: ClassVar[bool] = False

    def __call__(self, budget: Budget, evidence: SpectralEvidence) -> Ranks:
        """`evidence` is not looked at."""
        self.require_room(budget)
        return dict.fromkeys(budget.shapes)

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where whole matrices take more than `budget`."""
        spent = budget.spent(dict.fromkeys(budget.shapes))
        if spent > budget.total:
            share = budget.ratio * spent / budget.total
            raise UserError(
                f"{budget.request} is too small: this storage keeps whole matrices in {share:.4f} of their bits; "
                "method.allocation=Whole makes no factors"
            )
