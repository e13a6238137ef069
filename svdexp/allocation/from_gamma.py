"""Ranks from a best_gamma.json, the file in which Dobi-SVD (arXiv 2502.02723) publishes what it learned.

It trains, for every matrix, how many singular values γ of the activation of a 2048-token window to keep, so the rank
of an (m, n) matrix is γ · min(m, n) / 2048.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from svdexp.allocation.budget import Budget, Evidence
from svdexp.allocation.from_file import read_object
from svdexp.models.matrices import Ranks
from svdexp.runtime.errors import UserError

GAMMA_TOKENS = 2048


@dataclass(frozen=True)
class FromGamma:
    """`path`: a JSON object {module name: γ}; names that are no layers to compress are ignored.

    Ranks are in proportion to the file's and fill the budget, because files miss the ratio they are named for.
    """

    path: str = MISSING
    needs_spectra: ClassVar[bool] = False

    def files_read(self) -> list[Path]:
        """That one."""
        return [Path(self.path)]

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """The file's ranks, scaled to the budget.

        Raises:
            UserError: the file cannot be read, or has no positive γ for a layer.
        """
        gammas = read_object(Path(self.path))
        for name in budget.shapes:
            if not _is_gamma(gammas.get(name)):
                raise UserError(f"method.allocation.path={self.path} has no positive γ for {name}")
        return budget.fit({name: wanted_rank(gammas[name], *shape) for name, shape in budget.shapes.items()})

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where the file cannot be read, or even the lowest ranks are more than `budget`."""
        read_object(Path(self.path))
        budget.lowest()


def wanted_rank(gamma: float, m: int, n: int) -> float:
    """The rank, not rounded, that γ means for an (m, n) matrix."""
    return gamma * min(m, n) / GAMMA_TOKENS


def _is_gamma(value: Any) -> bool:
    """JSON in Python may hold NaN, infinity, and integers beyond any float."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max
