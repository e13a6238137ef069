"""Ranks from a ranks.json that an earlier run wrote: any run can be replayed, with any weighting."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from svdexp.allocation.budget import Budget, Evidence
from svdexp.models.matrices import Ranks
from svdexp.runtime import reading
from svdexp.runtime.errors import UserError


@dataclass(frozen=True)
class FromFile:
    """`path`: a JSON object {module name: rank, or null for dense} with exactly the compressed layers.

    The file decides the size; a file that costs more than the requested ratio is an error. Where targets.ranks fixes
    a layer's rank, the file's is ignored.
    """

    path: str = MISSING
    needs_spectra: ClassVar[bool] = False

    def files_read(self) -> list[Path]:
        """That one."""
        return [Path(self.path)]

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """The file's ranks, checked against the model's layers and the budget."""
        ranks = {name: rank for name, rank in read_ranks(Path(self.path)).items() if name not in budget.fixed}
        different = sorted(ranks.keys() ^ budget.shapes.keys())
        if different:
            raise UserError(
                f"method.allocation.path={self.path} and the model's layers differ, first at {different[0]}"
            )
        for name, rank in ranks.items():
            if rank is not None and rank > min(budget.shapes[name]):
                raise UserError(f"method.allocation.path={self.path}: rank {rank} is too large for {name}")
        if budget.spent(ranks) > budget.total:
            share = budget.ratio * budget.spent(ranks) / budget.total
            raise UserError(f"method.allocation.path={self.path} keeps {share:.4f}, more than {budget.request}")
        return ranks

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where the file cannot be read; which layers it must name is known later."""
        read_ranks(Path(self.path))


def read_ranks(path: Path) -> Ranks:
    """Parse a ranks.json.

    Raises:
        UserError: missing, not JSON, or not an object of positive integers and nulls.
    """
    ranks = read_object(path)
    if not all(r is None or (type(r) is int and r >= 1) for r in ranks.values()):
        raise UserError(f"method.allocation.path={path} is not an object of module names and positive ranks")
    return ranks


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UserError: missing, not JSON, or not an object.
    """
    try:
        return reading.read_object(path)
    except UserError as error:
        raise UserError(f"method.allocation.path={error}") from error
