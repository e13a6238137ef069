"""Ranks that the user fixes by pattern, beside any allocation: they count in the budget, which the others share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from svdexp.allocation.budget import Aligned, Allocation, Budget, Choosing, Evidence, Learning
from svdexp.allocation.curves import RankCurves
from svdexp.allocation.uniform import Uniform
from svdexp.allocation.whole import Whole
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


def expected_ranks(allocation: Allocation, budget: Budget, fixed: Ranks) -> Ranks:
    """A rank for every layer of `budget` before there is evidence: for all that `fixed` leaves, one share of its bits.

    That is what Uniform gives; an allocation that keeps matrices whole does so here, too, and so does one that chooses
    forms, where any of these is whole.

    Raises:
        UserError: `fixed` leaves nothing of the budget for the others, or it is too small for the lowest ranks.
    """
    rest = budget.without(fixed)
    whole = any(not form.ranked for form in budget.storage.menu.values())
    if isinstance(allocation, Whole) or (isinstance(allocation, Choosing) and whole):
        ranks: Ranks = dict.fromkeys(rest.shapes)
    else:
        ranks = one_share(rest.aligned(allocation.rank_align if isinstance(allocation, Aligned) else 1))
    return {name: (fixed | ranks)[name] for name in budget.shapes}


def one_share(budget: Budget) -> Ranks:
    """Uniform's ranks; where a layer's own share is too small for its lowest rank, others pay for that."""
    try:
        return Uniform(rank_align=budget.rank_align).ranks(budget)
    except UserError:
        return budget.fit({name: budget.uniform_rank(name) for name in budget.shapes})


class Allocated(NamedTuple):
    """What an allocation says.

    Attributes:
        ranks: of every layer.
        curves: how they were learned, where they were.
        forms: the word of each layer's form, where the storage lets the allocation choose; else empty.
    """

    ranks: Ranks
    curves: RankCurves | None = None
    forms: Mapping[str, str] = MappingProxyType({})


def allocate(allocation: Allocation, budget: Budget, fixed: Ranks, evidence: Evidence) -> Allocated:
    """A rank for every layer of `budget`: as `fixed` says, and by `allocation` for the others; and how it was learned.

    Raises:
        UserError: `fixed` leaves nothing of the budget for the others, or the allocation finds it too small.
    """
    rest = budget.without(fixed)
    found = chosen(allocation, rest, evidence) if rest.shapes else Allocated({})
    return found._replace(ranks={name: (fixed | found.ranks)[name] for name in budget.shapes})


def chosen(allocation: Allocation, budget: Budget, evidence: Evidence) -> Allocated:
    """What `allocation` says, with its curves if it has any."""
    if isinstance(allocation, Choosing):
        ranks, forms = allocation.choose(budget, evidence)
        return Allocated(ranks, forms=forms)
    if isinstance(allocation, Learning):
        return Allocated(*allocation.learn(budget, evidence))
    return Allocated(allocation(budget, evidence))
