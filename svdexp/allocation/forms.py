"""A form for each matrix, whole, in codes or at a rank, that minimises the summed loss of all under one budget.

    minimise Σ_k loss_k(f_k)   subject to Σ_k bits_k(f_k) ≤ budget

It is global_loss.py's problem with more to choose from: the losses of codes are those of the rounded matrices, so they
and the tails of spectra are in one unit, that of the weighting, and one price λ per bit compares them. With factors and
dense alone it is `global_loss`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from omegaconf import MISSING

from svdexp.allocation.budget import Aligned, Budget, Chosen, Evidence
from svdexp.allocation.from_file import read_object
from svdexp.allocation.global_loss import Trade, multiplier, spend
from svdexp.models.matrices import Ranks
from svdexp.models.structure import matches
from svdexp.runtime.errors import UserError, require
from svdexp.storage import Form


class Size(NamedTuple):
    """What a matrix can be: a form, at a rank where it has ranks, and the bits that it then takes."""

    bits: int
    form: str
    rank: int | None


@dataclass(frozen=True)
class Forms(Aligned):
    """Minimises the summed loss over forms.

    Attributes:
        only: pattern of names → the forms that such matrices may be; the first match wins.
        smallest: no matrix takes fewer bits than in this form.
    """

    only: dict[str, list[str]] = field(default_factory=dict)
    smallest: str | None = None
    needs_spectra: ClassVar[bool] = True

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """The ranks of `choose`."""
        return self.choose(budget, evidence)[0]

    def choose(self, budget: Budget, evidence: Evidence) -> Chosen:
        """The optimum for a price per bit, then what is left goes where a bit helps most."""
        self.require_room(budget)
        sizes = self.sizes(budget)
        trades = trades_of_forms(sizes, evidence.losses)
        rungs = spend(trades, multiplier(trades, budget.total), budget.total)
        chosen = {name: sizes[name][rungs[name]] for name in budget.shapes}
        return {name: size.rank for name, size in chosen.items()}, {name: size.form for name, size in chosen.items()}

    def require_room(self, budget: Budget) -> None:
        """Raise UserError for forms that there are not, and where the cheapest are more than `budget`."""
        lowest = sum(sizes[0].bits for sizes in self.sizes(budget).values())
        if lowest > budget.total:
            share = budget.ratio * lowest / budget.total
            raise UserError(f"{budget.request} is too small: the smallest form of every matrix costs {share:.4f}")

    def sizes(self, budget: Budget) -> dict[str, tuple[Size, ...]]:
        """What each matrix can be, cheapest first.

        Raises:
            UserError: a form or a pattern of the options is none of the budget's.
        """
        menu = budget.storage.menu
        for word in [word for words in self.only.values() for word in words] + [self.smallest or next(iter(menu))]:
            require(word in menu, f"method.allocation: {word} is none of storage.forms: {', '.join(menu)}")
        for pattern in self.only:
            some = any(matches(name, [pattern]) for name in budget.shapes)
            require(some, f"method.allocation.only: no layer to compress matches {pattern!r}")
        tables: dict[tuple[tuple[int, int], tuple[str, ...]], tuple[Size, ...]] = {}
        found = {}
        for name, shape in budget.shapes.items():
            allowed = next((words for pattern, words in self.only.items() if matches(name, [pattern])), list(menu))
            key = (shape, tuple(allowed))
            if key not in tables:
                tables[key] = self._table(name, budget, {word: menu[word] for word in allowed})
            found[name] = tables[key]
        return found

    def _table(self, name: str, budget: Budget, menu: Mapping[str, Form]) -> tuple[Size, ...]:
        sizes = [size for word, form in menu.items() for size in sizes_of(name, budget, word, form, self.rank_align)]
        if self.smallest is not None:
            least = sizes_of(name, budget, self.smallest, budget.storage.menu[self.smallest], self.rank_align)
            floor = min((size.bits for size in least), default=0)
            sizes = [size for size in sizes if size.bits >= floor]
        require(bool(sizes), f"method.allocation: no form is left for {name} of shape {budget.shapes[name]}")
        return tuple(sorted(sizes, key=lambda size: size.bits))


def sizes_of(name: str, budget: Budget, word: str, form: Form, align: int) -> list[Size]:
    """The sizes that the layer called `name` has in one form."""
    alone = replace(budget, storage=form.storage, rank_align=align)
    if not form.ranked:
        return [Size(alone.bits(name, None), word, None)]
    ladder, measured = alone.ladder(name), form.measured(*budget.shapes[name])
    rungs = zip(ladder.ranks[:-1], ladder.bits[:-1], strict=True)
    return [Size(bits, word, rank) for rank, bits in rungs if measured is None or rank in measured]


def trades_of_forms(
    sizes: Mapping[str, tuple[Size, ...]], losses: Mapping[str, Mapping[str, torch.Tensor]]
) -> list[Trade]:
    """One table for each list of sizes; `losses` are those of `Evidence`."""
    groups: dict[tuple[Size, ...], list[str]] = {}
    for name, table in sizes.items():
        groups.setdefault(table, []).append(name)
    return [
        Trade(
            names,
            torch.stack([losses_along(table, losses[name]) for name in names]),
            torch.tensor([size.bits for size in table], dtype=torch.float64),
        )
        for table, names in groups.items()
    ]


def losses_along(table: Sequence[Size], losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a matrix loses at each of its sizes, (K,)."""
    return torch.stack([losses[size.form][size.rank or 0] for size in table]).double()


@dataclass(frozen=True)
class FormsFromFile:
    """`path`: a JSON object {module name: form, or form@rank} with exactly the compressed layers.

    The file decides the size; a file that costs more than the requested ratio is an error.
    """

    path: str = MISSING
    needs_spectra: ClassVar[bool] = False

    def files_read(self) -> list[Path]:
        """That one."""
        return [Path(self.path)]

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """The ranks of `choose`."""
        return self.choose(budget, evidence)[0]

    def choose(self, budget: Budget, evidence: Evidence) -> Chosen:
        """The file's forms, checked against the model's layers, their shapes and the budget."""
        self.require_room(budget)
        choices = self._read()
        different = sorted(choices.keys() ^ budget.shapes.keys())
        if different:
            raise UserError(
                f"method.allocation.path={self.path} and the model's layers differ, first at {different[0]}"
            )
        menu, spent = budget.storage.menu, 0
        for name, (word, rank) in choices.items():
            require(
                word in menu and menu[word].ranked == (rank is not None) and (rank or 1) <= min(budget.shapes[name]),
                f"method.allocation.path={self.path}: {name} cannot be {said(word, rank)}; "
                f"storage.forms has {', '.join(menu)}",
            )
            spent += replace(budget, storage=menu[word].storage).bits(name, rank)
        if spent > budget.total:
            share = budget.ratio * spent / budget.total
            raise UserError(f"method.allocation.path={self.path} keeps {share:.4f}, more than {budget.request}")
        return {name: rank for name, (_, rank) in choices.items()}, {name: word for name, (word, _) in choices.items()}

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where the file cannot be read; which layers it must name is known later."""
        self._read()

    def _read(self) -> dict[str, tuple[str, int | None]]:
        return {name: self._choice(words) for name, words in read_object(Path(self.path)).items()}

    def _choice(self, words: object) -> tuple[str, int | None]:
        word, at, rank = words.partition("@") if isinstance(words, str) else ("", "", "")
        if not word or (at and not (rank.isdecimal() and int(rank) >= 1)):
            raise UserError(f"method.allocation.path={self.path} is not an object of module names and forms")
        return word, int(rank) if at else None


def said(word: str, rank: int | None) -> str:
    """A choice as forms.json has it."""
    return word if rank is None else f"{word}@{rank}"
