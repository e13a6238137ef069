"""What a model, a method and a ratio come to, before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedModel

from svdexp.allocation import Aligned, Budget, Foreseen, Whole, fixed_ranks
from svdexp.engine.search import refuse_target
from svdexp.engine.size import NearDense, Size, WholeModel, ratio_of
from svdexp.method import Method
from svdexp.models.behaviour import require_next_token, require_replayable
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.structure import (
    Targets,
    abbreviated,
    beside_the_blocks,
    find_matrices,
    matches,
    other_stacks,
    outside,
    shared_matrices,
    unknown_stacks,
    vectors,
)
from svdexp.runtime.errors import UserError
from svdexp.storage import Storage, parts_of

# What a model is planned for whose ratio is searched for: the middle of what that mostly comes to.
EXPECTED = 0.8


class Plan(NamedTuple):
    """The plan of one compression.

    Attributes:
        layers: the layers to compress.
        budget: of all of them.
        fixed: the ranks among them that the targets fix.
        notes: sentences on what the user may not expect.
        left_dense: what the targets select and is not compressed, reason → names.
    """

    layers: list[Matrix]
    budget: Budget
    fixed: Ranks
    notes: list[str]
    left_dense: dict[str, list[str]]

    @property
    def warnings(self) -> list[str]:
        """The notes, and a sentence for each reason why layers stay dense."""
        return [*self.notes, *said(self.left_dense)]


def plan(model: PreTrainedModel, method: Method, ratio: Size, targets: Targets) -> Plan:
    """The plan for `model`, which may be on the meta device.

    Raises:
        UserError: what cannot be compressed, fixed ranks that do not fit a layer or the budget, and a budget that the
            shapes alone rule out.
    """
    if hasattr(model.config, "svdexp"):
        raise UserError("model: it is compressed already; export it with format=dense first, or load the dense one")
    if isinstance(ratio, WholeModel):
        refuse_target(method, "bytes")
    layers = find_matrices(model, targets)
    method.storage.require_use(layers)
    require_next_token(model)
    if method.replay:
        require_replayable(model, *method.replay)
        refuse_beside(model, layers, *method.replay)
    budget, fixed = shares_of(ratio, model, layers, method, targets)
    notes = method.allocation.unaligned(budget.without(fixed)) if isinstance(method.allocation, Aligned) else []
    left = shared_matrices(model, targets) | vectors(model, targets)
    left |= unknown_stacks(model, targets) | other_stacks(model, targets) | outside(model, targets)
    return Plan(layers, budget, fixed, notes, left)


def refuse_beside(model: PreTrainedModel, layers: Sequence[Matrix], knob: str, instead: str) -> None:
    """Raise UserError where `knob` goes through the blocks, and a layer to compress is in others beside them."""
    name = beside_the_blocks(model, layers)
    if name:
        raise UserError(f"{knob} goes block by block, and {name} of targets.include is in no such block; {instead}")


def shares_of(
    size: Size, model: PreTrainedModel, layers: Sequence[Matrix], method: Method, targets: Targets
) -> tuple[Budget, Ranks]:
    """`shares` at `size`: where that has to be searched for at EXPECTED or, where that cannot be had, at all of it.

    Raises:
        UserError: as `shares`.
    """
    if not isinstance(size, NearDense):
        return shares(layers, method, ratio_of(size, model, layers), targets)
    try:
        return shares(layers, method, EXPECTED, targets)
    except UserError:
        return shares(layers, method, 1.0, targets)


def shares(layers: Sequence[Matrix], method: Method, ratio: float, targets: Targets) -> tuple[Budget, Ranks]:
    """The budget of `layers`, and the ranks among them that `targets` fixes.

    Raises:
        UserError: fixed ranks that do not fit a layer or the budget, and a budget that the shapes alone rule out.
    """
    budget = Budget(ratio, {x.name: (x.m, x.n) for x in layers}, method.storage, beside=beside(layers, method.storage))
    if targets.ranks and method.storage.menu:
        raise UserError(
            "targets.ranks says nothing of forms: use method.allocation.only, which says what matrices may be"
        )
    fixed = fixed_ranks(targets.ranks, budget.shapes)
    rest = budget.without(fixed)
    if isinstance(method.allocation, Whole) and any(fixed.values()):
        raise UserError("targets.ranks: method.allocation=Whole makes no factors; choose another method")
    if rest.shapes and isinstance(method.allocation, Foreseen):
        method.allocation.require_room(rest)
    return budget, fixed


def beside(layers: Sequence[Matrix], storage: Storage) -> dict[str, int]:
    """What each expert pays of what `storage` keeps once for a stack, in bits."""
    return parts_of(layers, lambda members: storage.common_bits(members[0].m, members[0].n))


def without(
    plan: Plan,
    idle: dict[str, list[str]],
    model: PreTrainedModel,
    method: Method,
    ratio: Size,
    targets: Targets,
) -> Plan:
    """The plan for `model` without layers that do not work as linear ones: `ratio` then counts the others alone.

    Raises:
        UserError: there are no others, or as `shares`.
    """
    if not idle:
        return plan
    gone = {name for names in idle.values() for name in names}
    rest = [layer for layer in plan.layers if layer.name not in gone]
    if not rest:
        raise UserError(f"no layer to compress is left: {'; '.join(said(idle))}")
    # a pattern that fixed ranks of these alone has nothing to fix any more
    ranks = {key: rank for key, rank in targets.ranks.items() if any(matches(layer.name, [key]) for layer in rest)}
    budget, fixed = shares_of(ratio, model, rest, method, replace(targets, ranks=ranks))
    return plan._replace(layers=rest, budget=budget, fixed=fixed, left_dense=plan.left_dense | idle)


def said(left: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each reason why layers stay dense."""
    kept = {reason: abbreviated(names) for reason, names in left.items()}
    return [f"left dense, and not counted in ratio: {names}, which {reason}" for reason, names in kept.items()]
