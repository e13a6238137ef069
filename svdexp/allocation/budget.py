"""The bits an allocation may spend, and what each rank costs under the chosen storage."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation.curves import RankCurves
from svdexp.models.matrices import Ranks
from svdexp.runtime.errors import UserError, require_positive
from svdexp.runtime.shelves import Shelf
from svdexp.storage import NUMBER_BITS, Storage


class Allocation(Protocol):
    """Chooses one rank per matrix."""

    needs_spectra: ClassVar[bool]  # whether singular values of the weighted matrices must exist first

    def __call__(self, budget: "Budget", evidence: "Evidence") -> Ranks:
        """Ranks within `budget`, chosen from `evidence`."""


@runtime_checkable
class Learning(Protocol):
    """An allocation that trains ranks, and can show how that went."""

    def learn(self, budget: "Budget", evidence: "Evidence") -> tuple[Ranks, RankCurves]:
        """What calling it gives, and the curves."""


# What a choice of forms says: ranks, and the word of a form for every matrix.
Chosen = tuple[Ranks, dict[str, str]]


@runtime_checkable
class Choosing(Protocol):
    """An allocation that chooses among the forms that a storage names."""

    def choose(self, budget: "Budget", evidence: "Evidence") -> Chosen:
        """What calling it gives, and the forms."""


@runtime_checkable
class Foreseen(Protocol):
    """An allocation that can say without evidence what is impossible."""

    def require_room(self, budget: "Budget") -> None:
        """Raise UserError for what `budget` and the options alone rule out."""


class SpectralEvidence(Protocol):
    """What a checkpoint can keep of `Evidence`."""

    @property
    def spectra(self) -> Mapping[str, torch.Tensor]:
        """Per layer, the descending singular values of L W R, (min(m, n),)."""

    @property
    def tokens(self) -> int:
        """How many tokens calibrated."""


class Repeatable(Protocol):
    """An allocation that looks at nothing else, so that it can run again where model and text are not at hand."""

    needs_spectra: ClassVar[bool]

    def __call__(self, budget: "Budget", evidence: SpectralEvidence) -> Ranks:
        """Ranks within `budget`, chosen from `evidence`."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """The option of every allocation that chooses ranks itself: all of them multiples of `rank_align`."""

    rank_align: int = 1

    def __post_init__(self) -> None:
        require_positive("method.allocation.rank_align", self.rank_align)

    def require_room(self, budget: "Budget") -> None:
        """Raise UserError where even the lowest ranks are more than `budget`."""
        budget.aligned(self.rank_align).lowest()

    def unaligned(self, budget: "Budget") -> list[str]:
        """A sentence on matrices smaller than one multiple of `rank_align`, and one on those that it keeps whole."""
        aligned, free = budget.aligned(self.rank_align), budget.aligned(1)
        small = [name for name, shape in budget.shapes.items() if min(shape) < self.rank_align]
        whole = [name for name in budget.shapes if aligned.ladder(name).top == 0 < free.ladder(name).top]

        def counted(names: Sequence[str]) -> str:
            return (
                f"{len(names)} of {len(budget.shapes)} matrices, the first {names[0]} of shape {free.shapes[names[0]]}"
            )

        knob = f"method.allocation.rank_align={self.rank_align}"
        sentences = [f"{knob} is larger than {counted(small)}: their ranks are multiples of 1"] if small else []
        if whole:
            sentences.append(f"{knob} keeps {counted(whole)}, whole: no multiple of it is cheaper")
        return sentences


@dataclass(frozen=True)
class Evidence:
    """What an allocation may look at.

    Attributes:
        model: the dense model; an allocation leaves it as it was.
        windows: calibration token ids, (N, L).
        spectra: per layer, the descending singular values of L W R, (min(m, n),); empty unless asked for
            by `needs_spectra`.
        losses: per layer, what it loses in each form that the storage names, whole (1,), or by rank (min(m, n) + 1,).
        scales: per layer, by how much a measurement multiplied its predicted losses, if there was one; the spectra are
            then multiplied already, by the root.
        truncated: builds the layer called `name` at a rank, as the storage would hold it.
        made_with: what layers that `truncated` builds depend on, for the identity of what is measured with them.
        shelf: called with the name of what an allocation measures and the options it depends on, where earlier
            runs left it.
        seed: the run's.
    """

    model: PreTrainedModel
    windows: torch.Tensor
    spectra: Mapping[str, torch.Tensor]
    truncated: Callable[[str, int], nn.Module]
    made_with: Mapping[str, str] = field(default_factory=dict)
    shelf: Callable[..., Shelf] = lambda stage, **options: Shelf()
    seed: int = 0
    losses: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many tokens calibrated."""
        return self.windows.numel()


@dataclass(frozen=True)
class Ladder:
    """The sizes that a matrix of one shape can have, cheapest first; the last rung is the whole matrix.

    A rank is a rung only if every larger rank, and whole, costs more.

    Attributes:
        ranks: (K,) ascending; the last rung stands at the rank from which on the whole matrix is no dearer.
        bits: (K,) strictly ascending.
    """

    ranks: tuple[int, ...]
    bits: tuple[int, ...]

    @property
    def top(self) -> int:
        """The rung of the whole matrix."""
        return len(self.ranks) - 1

    def rank(self, rung: int) -> int | None:
        """The rank at `rung`; None is whole."""
        return None if rung == self.top else self.ranks[rung]

    def rung(self, rank: float | None) -> int:
        """The highest rung of at most `rank`, which need not be whole; at least the lowest one."""
        return self.top if rank is None else max(0, bisect_right(self.ranks, rank) - 1)

    def affordable(self, bits: float) -> int:
        """The highest rung that costs at most `bits`; -1 where none does."""
        return bisect_right(self.bits, bits) - 1

    def real_rank(self, bits: float) -> float:
        """The rank that costs `bits`, between the rungs by linear interpolation."""
        return float(np.interp(bits, (0, *self.bits), (0, *self.ranks)))


@dataclass(frozen=True)
class Budget:
    """`ratio` of the dense bits of all layers in `shapes` (name → (m, n)).

    `rank_align` restricts ranks to its multiples, except in matrices smaller than one multiple. `fixed` are the ranks
    of layers that are decided already: they are not in `shapes`, and what they cost is not in `ratio`. `beside` is what
    experts pay, at any rank and whole, of what they keep together, in bits.
    """

    ratio: float
    shapes: Mapping[str, tuple[int, int]]
    storage: Storage
    rank_align: int = 1
    fixed: Ranks = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)

    def aligned(self, multiple: int) -> "Budget":
        """The same budget with every rank a multiple of `multiple`."""
        return replace(self, rank_align=multiple)

    def without(self, fixed: Ranks) -> "Budget":
        """What layers with `fixed` ranks leave for the others; its ratio is that of the others' dense bits, at most 1.

        Raises:
            UserError: they leave nothing.
        """
        if not fixed:
            return self
        shapes = {name: shape for name, shape in self.shapes.items() if name not in fixed}
        # Whole bits, so that rounding in the new ratio can never buy one more.
        left = math.floor(self.total) - self.spent(fixed)
        if left < 0 or (shapes and left == 0):
            share = self.spent(fixed) / sum(map(self.dense, self.shapes))
            raise UserError(f"targets.ranks alone keep {share:.4f}, which leaves nothing of ratio={self.ratio:g}")
        dense = sum(map(self.dense, shapes))
        return replace(self, ratio=min(1.0, left / dense) if shapes else 1.0, shapes=shapes, fixed=fixed)

    @property
    def request(self) -> str:
        """The ratio in an error's words."""
        return f"ratio={self.ratio:g}" + (" (all that targets.ranks leave to the other layers)" if self.fixed else "")

    def dense(self, name: str) -> int:
        """Bits of the dense matrix, of which `ratio` is a part."""
        m, n = self.shapes[name]
        return m * n * NUMBER_BITS

    def bits(self, name: str, rank: int | None) -> int:
        """Bits at `rank`; None is whole."""
        shape = self.shapes[name]
        own = self.storage.whole_bits(*shape) if rank is None else self.storage.bits(rank, *shape)
        return own + self.beside.get(name, 0)

    @property
    def total(self) -> float:
        """Bits that may be spent on all layers together."""
        return self.ratio * sum(map(self.dense, self.shapes))

    def spent(self, ranks: Ranks) -> int:
        """Bits that `ranks` costs."""
        return sum(self.bits(name, rank) for name, rank in ranks.items())

    def expected(self, ranks: Ranks) -> float:
        """What `ranks` costs, or, where matrices have a choice of forms, as much of the budget as these can take."""
        if not self.storage.menu:
            return self.spent(ranks)
        return min(self.total, sum(map(self.dense, self.shapes)))

    def ladder(self, name: str) -> Ladder:
        """The sizes that the layer can have."""
        return self._ladders[self.shapes[name], self.beside.get(name, 0)]

    def lowest(self) -> Ranks:
        """Every layer at its cheapest.

        Raises:
            UserError: even that exceeds the budget.
        """
        ranks = {name: self.ladder(name).rank(0) for name in self.shapes}
        if self.spent(ranks) > self.total:
            share = self.ratio * self.spent(ranks) / self.total
            if self.rank_align > 1 and self._loosened(lambda budget: budget.lowest()):
                raise UserError(
                    f"method.allocation.rank_align={self.rank_align} is too coarse for {self.request}: the lowest "
                    f"multiple in every layer, or the whole matrix where no multiple is smaller, costs {share:.4f}"
                )
            raise UserError(f"{self.request} is too small: the lowest rank of every layer costs {share:.4f}")
        return ranks

    def largest_rank(self, name: str, bits: float) -> int | None:
        """The largest rank that costs at most `bits`; None where all of the matrix fits.

        Raises:
            UserError: not even the lowest rank fits.
        """
        ladder = self.ladder(name)
        rung = ladder.affordable(bits)
        if rung < 0:
            at = f"{name} of shape {self.shapes[name]} without a single rank"
            if self.rank_align > 1 and self._loosened(lambda budget: budget.largest_rank(name, bits)):
                raise UserError(f"method.allocation.rank_align={self.rank_align} at {self.request} leaves {at}")
            raise UserError(f"{self.request} leaves {at}")
        return ladder.rank(rung)

    def rank_at(self, name: str, share: float) -> int | None:
        """The largest rank within `share` of the layer's dense bits, at least the lowest; None where that is whole."""
        ladder = self.ladder(name)
        return ladder.rank(max(0, ladder.affordable(share * self.dense(name))))

    def _loosened(self, attempt: Callable[["Budget"], object]) -> bool:
        """Whether `attempt` succeeds where ranks need not be multiples of anything."""
        try:
            attempt(self.aligned(1))
        except UserError:
            return False
        return True

    def uniform_rank(self, name: str) -> float:
        """The rank, not rounded, that costs `ratio` of the dense bits."""
        return self.ladder(name).real_rank(self.ratio * self.dense(name))

    def fit(self, wanted: Mapping[str, float]) -> Ranks:
        """Ranks in proportion to `wanted` (real-valued, per layer) that fill the budget.

        One factor scales all of them, found by bisection. Each is rounded down to a rung: at least the lowest,
        and whole from where a rank would cost as much. What rounding left is spent where it took most.

        Raises:
            UserError: the lowest rungs together exceed the budget.
        """
        lowest = self.lowest()
        # Wants further apart would not change a rank, only cost bisection steps.
        floor = 1e-6 * max(wanted.values())
        wants = {name: max(rank, floor) for name, rank in wanted.items()}
        if floor <= 0:
            return self.fill(lowest)

        def scaled(factor: float) -> Ranks:
            ladders = {name: self.ladder(name) for name in wants}
            return {name: ladders[name].rank(ladders[name].rung(factor * rank)) for name, rank in wants.items()}

        low, high = 0.0, max(self.ladder(name).ranks[-1] / rank for name, rank in wants.items())
        if self.spent(scaled(high)) <= self.total:
            return scaled(high)  # all whole
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.spent(scaled(middle)) <= self.total else (low, middle)
        ranks = scaled(low)
        return self.fill(ranks, sorted(wants, key=lambda name: (ranks[name] or 0) - low * wants[name]))

    def fill(self, ranks: Ranks, order: Sequence[str] | None = None) -> Ranks:
        """Spend what rounding left: one rung up for each layer in `order`, again and again while any step fits.

        Without `order`, layers come as they are below their share, which is `ratio` of their dense bits.
        """
        left = self.total - self.spent(ranks)
        rungs = {name: self.ladder(name).rung(rank) for name, rank in ranks.items()}
        climbing = list(order or sorted(ranks, key=lambda name: self.bits(name, ranks[name]) / self.dense(name)))
        while climbing:
            climbed = []
            for name in climbing:
                ladder, rung = self.ladder(name), rungs[name]
                # What is left only shrinks, so a step that does not fit now never will.
                if rung < ladder.top and (step := ladder.bits[rung + 1] - ladder.bits[rung]) <= left:
                    left -= step
                    rungs[name] = rung + 1
                    climbed.append(name)
            climbing = climbed
        return {name: self.ladder(name).rank(rung) for name, rung in rungs.items()}

    @cached_property
    def _ladders(self) -> dict[tuple[tuple[int, int], int], Ladder]:
        kinds = {(shape, self.beside.get(name, 0)) for name, shape in self.shapes.items()}
        return {(shape, beside): self._build_ladder(*shape, beside) for shape, beside in kinds}

    def _build_ladder(self, m: int, n: int, beside: int) -> Ladder:
        step = self.rank_align if self.rank_align <= min(m, n) else 1
        rungs: list[tuple[int, int]] = []
        cheapest = whole = self.storage.whole_bits(m, n) + beside
        for rank in range(min(m, n) // step * step, 0, -step):
            bits = self.storage.bits(rank, m, n) + beside
            if bits < cheapest:
                rungs.append((rank, bits))
                cheapest = bits
        rungs.reverse()
        last = rungs[-1][0] if rungs else 0
        ranks, bits_of = zip(*rungs, (last + step, whole), strict=True)
        return Ladder(ranks, bits_of)


def by_type(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Layers, of which the shapes are given, grouped by the last component of their name: all q_proj, all up_proj, …

    Where that is a number, as that of an expert in a stack, by the one before it and the shape.
    """
    groups: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    for name, shape in shapes.items():
        before, _, last = name.rpartition(".")
        key = (before.rpartition(".")[2], shape) if last.isdecimal() else (last, None)
        groups.setdefault(key, []).append(name)
    return list(groups.values())
