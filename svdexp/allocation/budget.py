"""The bits an allocation may spend, and what each rank costs under the chosen storage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.errors import UserError
from svdexp.storage import Storage

# Module name → rank; None keeps the layer dense.
Ranks = dict[str, int | None]


class Allocation(Protocol):
    """Chooses one rank per matrix."""

    needs_spectra: ClassVar[bool]  # whether singular values of the weighted matrices must exist first

    def __call__(self, budget: "Budget", evidence: "Evidence") -> Ranks:
        """Ranks within `budget`, chosen from `evidence`."""


@dataclass(frozen=True)
class Evidence:
    """What an allocation may look at.

    Attributes:
        model: the dense model; an allocation leaves it as it was.
        windows: calibration token ids, (N, L).
        spectra: per layer, the descending singular values of L W R, (min(m, n),); empty unless asked for
            by `needs_spectra`.
        truncated: builds the layer called `name` at a rank, as the storage would hold it.
    """

    model: PreTrainedModel
    windows: torch.Tensor
    spectra: Mapping[str, torch.Tensor]
    truncated: Callable[[str, int], nn.Module]


@dataclass(frozen=True)
class Budget:
    """`ratio` of the dense bits of all layers in `shapes` (name → (m, n))."""

    ratio: float
    shapes: Mapping[str, tuple[int, int]]
    storage: Storage
    number_bits: int

    def dense(self, name: str) -> int:
        """Bits of the dense matrix."""
        m, n = self.shapes[name]
        return m * n * self.number_bits

    def bits(self, name: str, rank: int | None) -> int:
        """Bits at `rank`; None is dense."""
        if rank is None:
            return self.dense(name)
        return self.storage.bits(rank, *self.shapes[name], self.number_bits)

    @property
    def total(self) -> float:
        """Bits that may be spent on all layers together."""
        return self.ratio * sum(map(self.dense, self.shapes))

    def spent(self, ranks: Ranks) -> int:
        """Bits that `ranks` costs."""
        return sum(self.bits(name, rank) for name, rank in ranks.items())

    def largest_rank(self, name: str, bits: float) -> int | None:
        """The largest rank that costs at most `bits`; None where dense fits or a rank saves nothing.

        Raises:
            UserError: not even rank 1 fits.
        """
        if bits >= self.dense(name):
            return None
        low, high = 0, min(self.shapes[name])
        while low < high:  # bits(rank) grows with rank, so bisect
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bits(name, middle) <= bits else (low, middle - 1)
        if low == 0:
            raise UserError(f"ratio={self.ratio:g} leaves {name} of shape {self.shapes[name]} without a single rank")
        return low if self.bits(name, low) < self.dense(name) else None

    def fill(self, ranks: Ranks) -> Ranks:
        """Spend what rounding left: one rank more for layers in order of how far below their share they are.

        The share of a layer is `ratio` of its dense bits. At most one rank each, so the allocation keeps its
        shape.
        """
        left = self.total - self.spent(ranks)
        result = dict(ranks)
        for name in sorted(ranks, key=lambda name: self.bits(name, ranks[name]) / self.dense(name)):
            rank = ranks[name]
            if rank is None or rank == min(self.shapes[name]):
                continue
            step = self.bits(name, rank + 1) - self.bits(name, rank)
            if step <= left and self.bits(name, rank + 1) < self.dense(name):
                left -= step
                result[name] = rank + 1
        return result
