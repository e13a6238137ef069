"""Ranks that the user fixes by pattern, beside any allocation: they count in the budget, which the others share."""

from collections.abc import Mapping

from svdexp.allocation.budget import Allocation, Budget, Evidence
from svdexp.models.matrices import Ranks
from svdexp.models.structure import matches
from svdexp.runtime.errors import UserError


def fixed_ranks(patterns: Mapping[str, int | None], shapes: Mapping[str, tuple[int, int]]) -> Ranks:
    """The ranks of those layers in `shapes` (name → (m, n)) that an fnmatch pattern names; the first match wins.

    Raises:
        UserError: a pattern matches no layer, or a rank is not in 1 … min(m, n).
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in shapes):
            raise UserError(f"targets.ranks: no layer to compress matches {pattern!r}")
    found = {name: [rank for pattern, rank in patterns.items() if matches(name, [pattern])] for name in shapes}
    fixed = {name: ranks[0] for name, ranks in found.items() if ranks}
    for name, rank in fixed.items():
        if rank is not None and not 1 <= rank <= min(shapes[name]):
            raise UserError(
                f"targets.ranks: {name} of shape {shapes[name]} takes a rank from 1 to {min(shapes[name])}, not {rank}"
            )
    return fixed


def allocate(allocation: Allocation, budget: Budget, fixed: Ranks, evidence: Evidence) -> Ranks:
    """A rank for every layer of `budget`: as `fixed` says, and by `allocation` for the others.

    Raises:
        UserError: `fixed` leaves nothing of the budget for the others, or the allocation finds it too small.
    """
    rest = budget.without(fixed)
    ranks = fixed | (allocation(rest, evidence) if rest.shapes else {})
    return {name: ranks[name] for name in budget.shapes}
