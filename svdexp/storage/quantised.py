"""Factors, or whole matrices, as packed integer codes: rounded to the nearest, as ASVD's weight_quant, or by GPTQ.

A matrix that is not factorised is quantised as it is: from the rank on where factors would take as many bits, that is
the better use of them.

Row i of B and column i of A are scaled against each other until the columns of A have length one. Rounding B is as good
either way, because rows have scales of their own. A's groups reach across components, so a small column beside a large
one would lose its digits.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeVar, final

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.calibration import BlockwiseStatistics
from svdexp.calibration.compressed_path import compressed_path
from svdexp.models.factors import Factors, factors_of, filled
from svdexp.models.matrices import Matrix
from svdexp.models.portable.svdexp_bits import CODE_BITS, groups, pack, packed_bytes
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.portable.svdexp_scaled import ScaledLinear
from svdexp.models.residency import instead
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import UserError, require, require_positive
from svdexp.runtime.finite import all_finite
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf
from svdexp.storage.base import NUMBER_BITS, Errors, Kept, Storage
from svdexp.storage.gptqmodel import by_gptqmodel, require_gptqmodel
from svdexp.storage.rounding import Grid, Inputs, Rounded, gptq, to_nearest, walk

# Entries that GPTQ takes on at once, of one matrix on several grids: half a gigabyte of float32.
ENTRIES = 1 << 27

Code = TypeVar("Code")


@final
@dataclass(frozen=True)
class RTNStorage(Storage):
    """Factors rounded to the nearest code.

    Attributes:
        code_bits: of one entry.
        group_size: how many neighbours along the input of a factor share a 16-bit scale; None: a whole row does.
        zero_points: whether a group also has a code of zero of its own, `code_bits` wide, so that its grid need not be
            symmetric.
        fit: whether a group's step may be smaller than what reaches its largest number, where that loses less.
    """

    code_bits: int = 4
    group_size: int | None = 32
    zero_points: bool = False
    fit: bool = False

    def __post_init__(self) -> None:
        require(
            self.code_bits in CODE_BITS, f"storage.code_bits must be one of {list(CODE_BITS)}, not {self.code_bits}"
        )
        if self.group_size is not None:
            require_positive("storage.group_size", self.group_size)

    @property
    def rounds_factors(self) -> bool:
        """To codes."""
        return True

    @property
    def grid(self) -> Grid:
        """What entries are rounded to."""
        return Grid(self.code_bits, self.group_size, self.zero_points, self.fit)

    def bits(self, rank: int, m: int, n: int) -> int:
        """Codes, up to whole bytes, and scales of both factors."""
        return self.whole_bits(rank, n) + self.whole_bits(m, rank)

    def whole_bits(self, m: int, n: int) -> int:
        """Codes, up to whole bytes, scales, and packed codes of zero, of one matrix."""
        count = m * groups(n, self.group_size)
        zeros = packed_bytes(count, self.code_bits) if self.zero_points else 0
        return 8 * (packed_bytes(m * n, self.code_bits) + zeros) + NUMBER_BITS * count

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> QuantisedLinear:
        """A layer that holds A B, rounded, and `bias` with the dtype and device of `like`.

        Raises:
            UserError: a factor is not finite, or too large for float16.
        """
        factors = unit_columns(factors)
        return coded(self.grid, to_nearest(factors.A, self.grid), to_nearest(factors.B, self.grid), bias, like)

    def whole(self, W: torch.Tensor, bias: torch.Tensor | None) -> QuantisedLinear:
        """A layer that holds W (m, n), rounded, and `bias`.

        Raises:
            UserError: as `layer`.
        """
        return self.coded(to_nearest(W, self.grid), bias, W)

    def rounded_factors(self, factors: Factors) -> Factors:
        """To the nearest, float64."""
        factors = unit_columns(factors)
        return Factors(*(self.grid.numbers(to_nearest(part, self.grid)) for part in (factors.A, factors.B)))

    @staticmethod
    def errors(storages: Sequence["RTNStorage"], W: torch.Tensor, C: torch.Tensor | None) -> Errors:
        """To the nearest."""
        grids = enumerate(storage.grid for storage in storages)
        yield from ((index, W.double() - grid.numbers(to_nearest(W, grid))) for index, grid in grids)

    def coded(self, rounded: Rounded, bias: torch.Tensor | None, like: torch.Tensor) -> QuantisedLinear:
        """A layer of a whole matrix that is rounded already, and `bias`, with the dtype and device of `like`.

        Raises:
            UserError: as `layer`.
        """
        return coded(self.grid, rounded, None, bias, like)


class Solver(StrEnum):
    """Two implementations of GPTQ."""

    own = "own"  # storage/rounding.py, float64
    gptqmodel = "gptqmodel"  # the maintained library, float32; it wants ranks that are multiples of the groups


@final
@dataclass(frozen=True)
class GPTQStorage(Storage):
    """Factors, or whole matrices, whose codes GPTQ chooses, on inputs that the quantised layers before them produce.

    Attributes:
        code_bits, group_size, zero_points, fit: as of RTNStorage.
        samples: calibration windows used, at most; the paper takes 128.
        solver: who chooses the codes.
    """

    code_bits: int = 4
    group_size: int | None = 32
    zero_points: bool = False
    fit: bool = False
    samples: int = 128
    solver: Solver = Solver.own
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.nearest  # which checks the codes
        require_positive("storage.samples", self.samples)
        if self.solver is Solver.gptqmodel:
            require_gptqmodel()
            require(
                not (self.zero_points or self.fit) and self.code_bits != 5,
                "storage.solver=gptqmodel is used on symmetric grids of 2, 3, 4, 6 or 8 bits that reach all numbers; "
                "use storage.solver=own",
            )

    @property
    def nearest(self) -> RTNStorage:
        """The same codes without GPTQ: what they cost, and what stands for them where an allocation tries layers."""
        return RTNStorage(self.code_bits, self.group_size, self.zero_points, self.fit)

    @property
    def rounds_factors(self) -> bool:
        """To codes."""
        return True

    @property
    def grid(self) -> Grid:
        """What entries are rounded to."""
        return self.nearest.grid

    def bits(self, rank: int, m: int, n: int) -> int:
        """As of RTNStorage."""
        return self.nearest.bits(rank, m, n)

    def whole_bits(self, m: int, n: int) -> int:
        """As of RTNStorage."""
        return self.nearest.whole_bits(m, n)

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> QuantisedLinear:
        """What an allocation tries out: factors rounded to the nearest.

        Raises:
            UserError: as of RTNStorage.
        """
        return self.nearest.layer(factors, bias, like)

    @staticmethod
    def errors(storages: Sequence["GPTQStorage"], W: torch.Tensor, C: torch.Tensor | None) -> Errors:
        """By the own solver, in float32, or to the nearest where C is no matrix.

        Grids with groups of one size go at once, as many as ENTRIES allow.
        """
        if C is None or C.ndim == 1:
            yield from RTNStorage.errors([storage.nearest for storage in storages], W, C)
            return
        most, inputs = max(1, ENTRIES // W.numel()), Inputs.of(C)
        for size in dict.fromkeys(storage.group_size for storage in storages):
            alike = [index for index, storage in enumerate(storages) if storage.group_size == size]
            for indices in (alike[start : start + most] for start in range(0, len(alike), most)):
                done = walk(W, inputs, [storages[index].grid for index in indices], torch.float32)
                yield from zip(indices, done.errors(W), strict=True)

    @staticmethod
    def finish(
        model: PreTrainedModel, storages: Mapping[Matrix, "GPTQStorage"], windows: torch.Tensor, finished: Shelf
    ) -> None:
        """Quantise the layers of `storages` in `model`, factors and dense ones, in place and in model order."""
        block_by_block(model, storages, windows, finished, "GPTQ")

    def stored(self, model: PreTrainedModel, matrix: Matrix, C: torch.Tensor) -> QuantisedLinear:
        """The layer that holds what `matrix` is in `model`, factors or whole, given the second moment C of its inputs.

        Raises:
            UserError: as `layer`.
        """
        layer = matrix.layer(model)
        if isinstance(layer, LowRankLinear):
            return self.calibrated(layer, C)
        return self.calibrated_whole(matrix.weight(model), matrix.bias(model), C)

    def calibrated(self, plain: LowRankLinear, C: torch.Tensor) -> QuantisedLinear:
        """The layer that holds the factors of `plain`, given the second moment C (n, n) of its inputs.

        Raises:
            UserError: as `layer`.
        """
        A, B = in_turn(unit_columns(factors_of(plain)), C, self._solve, self.grid.numbers)
        return coded(self.grid, A, B, plain.bias, plain.rank_in.weight)

    def calibrated_whole(self, W: torch.Tensor, bias: torch.Tensor | None, C: torch.Tensor) -> QuantisedLinear:
        """The layer that holds all of W (m, n) and `bias`, given the second moment C (n, n) of its inputs.

        Raises:
            UserError: as `layer`.
        """
        return coded(self.grid, self._solve(W, C), None, bias, W)

    def _solve(self, W: torch.Tensor, C: torch.Tensor) -> Rounded:
        return (by_gptqmodel if self.solver is Solver.gptqmodel else gptq)(W, C, self.grid)

    def cost(self, workload: Workload) -> Work:
        """The inputs, then inverses, and each column's error passed on."""
        work = compressed_path(workload, self.samples)
        for layer in workload.layers:
            m, n = layer.m, layer.n
            r = workload.rank(layer)
            rows = r or m  # of what comes first
            algebra = 2 * (n**3 + r**3) + n * n * rows + m * r * r + 2 * n * r * (n + r)
            work += Work(float64=algebra, bytes=8 * (3 * n * n + 3 * r * r + 3 * (rows * n + r * m)))
        return work


class Calibrated(Protocol):
    """A storage whose layers are made for the inputs that the finished layers before them produce."""

    @property
    def samples(self) -> int:
        """Calibration windows used, at most."""

    @property
    def nearest(self) -> RTNStorage:
        """The same codes to the nearest."""

    def stored(self, model: PreTrainedModel, matrix: Matrix, C: torch.Tensor) -> QuantisedLinear:
        """The layer for what `matrix` is in `model`, given the second moment C of its inputs."""


def block_by_block(
    model: PreTrainedModel, storages: Mapping[Matrix, Calibrated], windows: torch.Tensor, finished: Shelf, what: str
) -> None:
    """Put the layers of `storages` in `model`, in model order, behind a progress bar that says `what`.

    Layers fed by one tensor share a second moment, as the model computes it at that moment. Blocks that are `finished`
    are put there as they are, and the windows come through them only if one behind them is not.
    """
    layers = list(storages)
    samples = max(storage.samples for storage in storages.values())
    path = BlockwiseStatistics(model, layers, windows[:samples], ("gram",))
    passed: list[list[Matrix]] = []  # finished blocks that the windows have not come through
    for group in progress(list(dict.fromkeys(layer.group for layer in layers)), what):
        members = [matrix for matrix in layers if matrix.group == group]
        if (kept := finished.get(group)) is not None:
            for matrix in members:
                matrix.put(model, again(model, matrix, storages[matrix].nearest.grid, kept))
            passed.append(members)
            continue
        while passed and group in path.blocks:
            with ExitStack() as decoded:
                for matrix in (earlier := passed.pop(0)):
                    decode(matrix.layer(model), decoded)
                path.leave(earlier[0].group)
        with ExitStack() as decoded:  # the windows come through a block as often as it has inputs
            for names in path.sharing(group):
                statistics = path.statistics(group, names)
                for matrix in (matrix for matrix in members if matrix.name in names):
                    layer = storages[matrix].stored(model, matrix, statistics[matrix.name]["gram"])
                    matrix.put(model, layer)
                    decode(layer, decoded)
            path.leave(group)
        states = {matrix.name: matrix.layer(model).state_dict() for matrix in members}
        finished.put(group, {f"{name}/{key}": x for name, state in states.items() for key, x in state.items()})


def decode(layer: nn.Module, context: ExitStack) -> None:
    """Let `layer` multiply by numbers in this context: of few tokens its own products round in another way."""
    assert isinstance(layer, QuantisedLinear)
    context.enter_context(instead(layer, numbers_of(layer)))


def again(model: PreTrainedModel, matrix: Matrix, grid: Grid, kept: Mapping[str, torch.Tensor]) -> QuantisedLinear:
    """The layer of `matrix`, which is dense or plain factors in `model`, of what was `kept` of its block."""
    plain, mine = matrix.layer(model), f"{matrix.name}/"
    like = plain.rank_in.weight if isinstance(plain, LowRankLinear) else matrix.weight(model)
    state = {key.removeprefix(mine): tensor for key, tensor in kept.items() if key.startswith(mine)}
    return of_state(grid, matrix.m, matrix.n, state, like)


def coded(
    grid: Grid,
    A: Rounded,
    B: Rounded | None,
    bias: torch.Tensor | None,
    like: torch.Tensor,
    columns: Mapping[str, torch.Tensor] | None = None,
) -> QuantisedLinear:
    """The layer of A B with codes on `grid`; without B, of A alone.

    Of a ScaledLinear, `columns` has the numbers by which columns are multiplied, float16, by side.

    Raises:
        UserError: a scale is beyond float16.
    """
    m, n = len(A.codes), (B or A).codes.shape[1]
    state = {} if bias is None else {"bias": bias.detach()}
    for side, part in [("out", A)] if B is None else [("in", B), ("out", A)]:
        if not all(all_finite(x) for x in [part.scale, *([columns[side]] if columns else [])]):
            at = f" at rank {len(B.codes)}" if B else ""
            raise UserError(
                f"quantised storage cannot hold a matrix of shape {(m, n)}{at}: its numbers are not finite or "
                "beyond float16; use storage=factors"
            )
        if columns:
            state[f"{side}_columns"] = columns[side].view(torch.int16)
        state[f"{side}_codes"] = pack(part.codes.flatten(), grid.bits)
        state[f"{side}_scale"] = part.scale.view(torch.int16)
        if part.zero is not None:
            state[f"{side}_zero"] = pack(part.zero.flatten(), grid.bits)
    return of_state(grid, m, n, state, like)


def of_state(grid: Grid, m: int, n: int, state: Mapping[str, torch.Tensor], like: torch.Tensor) -> QuantisedLinear:
    """The layer of a matrix (m, n) that holds `state`, codes on `grid` and what belongs to them."""
    shape: dict[str, Any] = {
        "code_bits": grid.bits,
        "group_size": grid.group_size,
        "zero_points": grid.zero_points,
    }
    kind = ScaledLinear if "out_columns" in state else QuantisedLinear
    rank = len(state["in_scale"]) if "in_scale" in state else None
    layer = kind(n, rank, m, "bias" in state, **shape, dtype=like.dtype, device="meta")
    return filled(layer, state, like)


def in_turn(
    factors: Factors,
    C: torch.Tensor,
    solve: Callable[[torch.Tensor, torch.Tensor], Code],
    numbers: Callable[[Code], torch.Tensor],
) -> tuple[Code, Code]:
    """The codes of A and of B, which `solve` chooses for inputs of a second moment and which mean these `numbers`.

    A is rounded for what it gets, which is what the rounded B makes of inputs of the second moment C.
    """
    B = solve(factors.B, C)
    rounded = numbers(B)
    return solve(factors.A, rounded @ C.double() @ rounded.mT), B


def numbers_of(layer: QuantisedLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `layer` computes, but that its codes become numbers once and not in every pass."""
    factors = [layer.factor(side, layer.dtype) for side in layer.shapes]

    def forward(x: torch.Tensor) -> torch.Tensor:
        for factor in factors[:-1]:
            x = nn.functional.linear(x, factor)
        return nn.functional.linear(x, factors[-1], layer.bias)

    return forward


def unit_columns(factors: Factors) -> Factors:
    """The same product with columns of A (m, r) of length one; columns of zeros stay. float64."""
    A, B = factors.A.double(), factors.B.double()
    length = A.norm(dim=0)
    length = torch.where(length > 0, length, 1)
    return Factors(A / length, B * length[:, None])
