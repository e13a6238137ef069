"""Activation-aware scales before rounding (AWQ, arXiv 2306.00978): columns that see large inputs get finer steps.

    W ≈ round(W diag(s)) diag(1 / s),   s = x^α,   x the root mean square of every input

α is the one of a ladder for which tr(Δ C Δᵀ), Δ what is lost and C the second moment of the inputs, is least; α = 0 is
rounding to the nearest. The paper's: the form of s, the search on a ladder, its scaling to √(max s · min s) = 1. Ours:
the error of the one matrix in place of its block's; x from C, where the paper has means of magnitudes; a matrix's own
s, kept beside its codes, because not every model has a layer before it to put 1 / s into. Its search for clipped
ranges is not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from transformers import PreTrainedModel

from svdexp.calibration.compressed_path import compressed_path
from svdexp.models.factors import Factors, factors_of
from svdexp.models.matrices import Matrix
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require_positive
from svdexp.runtime.shelves import Shelf
from svdexp.storage.base import NUMBER_BITS, Kept, Storage
from svdexp.storage.quantised import RTNStorage, block_by_block, coded, in_turn, unit_columns
from svdexp.storage.rounding import Grid, Rounded, to_nearest

RUNGS = 20  # of the ladder, as in the paper's code


class Scaled(NamedTuple):
    """The codes of W diag(s), and 1 / s, (columns,), float16."""

    rounded: Rounded
    columns: torch.Tensor

    def numbers(self, grid: Grid) -> torch.Tensor:
        """What is held of W, float64."""
        return grid.numbers(self.rounded) * self.columns.double()


def awq(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Scaled:
    """The codes and scales of W (rows, columns) that lose least on inputs of the second moment C (columns, columns)."""
    W, C = W.double(), C.float()
    size = C.diagonal().double().clamp_min(0).sqrt()
    size = torch.where(size > 0, size, size[size > 0].min() if bool((size > 0).any()) else 1.0)
    found: list[tuple[float, Scaled]] = []
    for rung in range(RUNGS):
        scale = size ** (rung / RUNGS)
        columns = (scale.max() * scale.min()).sqrt().div(scale).half()
        scaled = Scaled(to_nearest(W / columns.double(), grid), columns)
        error = (W - scaled.numbers(grid)).float()
        found.append((float((error @ C * error).sum(dtype=torch.float64)), scaled))
    return min(found, key=lambda pair: pair[0])[1]


@final
@dataclass(frozen=True)
class AWQStorage(Storage):
    """Factors, or whole matrices, in codes after scaling, for inputs that the quantised layers before them produce.

    Attributes:
        code_bits, group_size, zero_points: as of RTNStorage.
        samples: calibration windows used, at most.
    """

    code_bits: int = 4
    group_size: int | None = 128
    zero_points: bool = True
    samples: int = 128
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.nearest  # which checks the codes
        require_positive("storage.samples", self.samples)

    @property
    def nearest(self) -> RTNStorage:
        """The same codes without scales: what they cost, and what stands for them where an allocation tries layers."""
        return RTNStorage(self.code_bits, self.group_size, self.zero_points)

    @property
    def rounds_factors(self) -> bool:
        """To codes."""
        return True

    def bits(self, rank: int, m: int, n: int) -> int:
        """As of RTNStorage, and a number for each column of both factors."""
        return self.whole_bits(rank, n) + self.whole_bits(m, rank)

    def whole_bits(self, m: int, n: int) -> int:
        """As of RTNStorage, and a number for each column."""
        return self.nearest.whole_bits(m, n) + NUMBER_BITS * n

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> QuantisedLinear:
        """What an allocation tries out: factors rounded to the nearest.

        Raises:
            UserError: as of RTNStorage.
        """
        return self.nearest.layer(factors, bias, like)

    @staticmethod
    def finish(
        model: PreTrainedModel, storages: Mapping[Matrix, "AWQStorage"], windows: torch.Tensor, finished: Shelf
    ) -> None:
        """Quantise the layers of `storages` in `model`, factors and dense ones, in place and in model order."""
        block_by_block(model, storages, windows, finished, "AWQ")

    def stored(self, model: PreTrainedModel, matrix: Matrix, C: torch.Tensor) -> QuantisedLinear:
        """The layer that holds what `matrix` is in `model`, factors or whole, given the second moment C of its inputs.

        Raises:
            UserError: as `layer`.
        """
        plain, grid = matrix.layer(model), self.nearest.grid
        if not isinstance(plain, LowRankLinear):
            W = matrix.weight(model)
            out = awq(W, C, grid)
            return coded(grid, out.rounded, None, matrix.bias(model), W, {"out": out.columns})
        factors = unit_columns(factors_of(plain))
        A, B = in_turn(factors, C, lambda W, C: awq(W, C, grid), lambda scaled: scaled.numbers(grid))
        columns = {"in": B.columns, "out": A.columns}
        return coded(grid, A.rounded, B.rounded, plain.bias, plain.rank_in.weight, columns)

    def cost(self, workload: Workload) -> Work:
        """The inputs, then a loss for every rung."""
        work = compressed_path(workload, self.samples)
        for layer in workload.layers:
            m, n = layer.m, layer.n
            r = workload.rank(layer)
            tried = 2 * n * n * (r or m) + 2 * m * r * r
            work += Work(float32=RUNGS * tried, bytes=8 * (n * n + 3 * (r or m) * n))
        return work
