"""From matrices to the codes and scales of a QuantisedLinear: to the nearest, or by GPTQ (arXiv 2210.17323).

On a symmetric grid a group's largest magnitude is 2^(bits − 1) − ½ steps, so every number lies within half a step of a
code. Scales are rounded up to float16 first, and codes are chosen for what the file will hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from svdexp.models.portable.svdexp_bits import middle, widened

# Relative to the mean of the diagonal, as in the paper.
DAMPING = 0.01
# How many columns pass on their errors together where there are no groups.
COLUMNS = 128
SMALLEST = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True)
class Rounded:
    """A matrix W (rows, columns) as scale · (code − zero).

    Attributes:
        codes: (rows, columns), integers from 0 to 2^bits − 1.
        scale: (rows, groups), float16; infinite or NaN where W is beyond it.
        zero: the code of zero in each group, (rows, groups); None: in the middle, 2^(bits − 1).
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` bits with one scale for `group_size` neighbours in a row, or for the whole row.

    With `zero_points` a group's grid reaches from its smallest number to its largest, zero among them. Otherwise it is
    symmetric.
    """

    bits: int
    group_size: int | None
    zero_points: bool = False

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def levels(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale, float16, and code of zero, float64, of every group of W (rows, columns), both (rows, groups)."""
        size = min(self.group_size or W.shape[1], W.shape[1])
        padded = torch.nn.functional.pad(W, (0, -W.shape[1] % size)).reshape(len(W), -1, size)
        if not self.zero_points:
            scale = rounded_up(padded.abs().amax(2) / (middle(self.bits) - 0.5))
            return scale, torch.full_like(scale, middle(self.bits), dtype=torch.float64)
        low, high = padded.amin(2).clamp_max(0), padded.amax(2).clamp_min(0)
        scale = rounded_up((high - low) / self.highest)
        return scale, (-low / scale.double()).round()

    def nearest(self, W: torch.Tensor, step: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The codes of W for steps and codes of zero that broadcast to it, as numbers."""
        return (W / step).round().add(zero).clamp(0, self.highest)

    def rounded(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> Rounded:
        """`codes` with the levels of their groups."""
        return Rounded(codes, scale, zero.int() if self.zero_points else None)

    def numbers(self, rounded: Rounded) -> torch.Tensor:
        """The matrix (rows, columns) that is stored, float64."""
        columns = rounded.codes.shape[1]
        steps = widened(rounded.scale.double(), columns, self.group_size)
        zero = rounded.zero
        offset = middle(self.bits) if zero is None else widened(zero.double(), columns, self.group_size)
        return (rounded.codes.double() - offset) * steps


def rounded_up(scale: torch.Tensor) -> torch.Tensor:
    """The next float16 that is no smaller, and positive."""
    half = scale.clamp_min(SMALLEST).half()
    return (half.view(torch.int16) + (half.double() < scale).short()).view(torch.float16)


def to_nearest(W: torch.Tensor, grid: Grid) -> Rounded:
    """Every entry by itself."""
    W, columns = W.double(), W.shape[1]
    scale, zero = grid.levels(W)
    steps, zeros = (widened(level.double(), columns, grid.group_size) for level in (scale, zero))
    return grid.rounded(grid.nearest(W, steps, zeros).int(), scale, zero)


def gptq(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Rounded:
    """Codes for which tr(Δ C Δᵀ), Δ what rounding changes, is small: `gptq_each` of one grid."""
    return gptq_each(W, C, [grid])[0]


def gptq_each(
    W: torch.Tensor, C: torch.Tensor, grids: Sequence[Grid], dtype: torch.dtype = torch.float64
) -> list[Rounded]:
    """The codes of W on each of `grids`, whose groups are of one size, for which tr(Δ C Δᵀ) is small.

    Column after column is rounded to the nearest, and the columns behind it move to make up for its error. With the
    damped C⁻¹ = Uᵀ U, U upper triangular, the error e of column i moves column j by −e U_ij / U_ii. A group's grid is
    chosen when its first column is reached. Columns come as `turns` says. To this walk several grids are more rows, so
    they cost no second U.

    Args:
        W: (rows, columns).
        C: second moment of the inputs, (columns, columns), in any multiple.
        grids: codes and groups.
        dtype: the number format of the walk.
    """
    size, highest = grids[0].group_size, torch.tensor([grid.highest for grid in grids], dtype=dtype)
    parts = turns(C.diagonal(), size)
    order = torch.cat(parts)
    U, top = feedback(C[order][:, order]).to(dtype), highest.repeat_interleave(len(W)).to(W.device)
    W = W.to(dtype).repeat(len(grids), 1)
    scale, zero = _levels(W, grids)
    W = W[:, order]
    codes = torch.empty_like(W, dtype=torch.uint8)
    stop = 0
    for part in parts:
        start, stop = stop, stop + len(part)
        group = int(part[0]) // size if size else 0
        if size:
            scale[:, [group]], zero[:, [group]] = _levels(W[:, start:stop], grids)
        step, middle_code = scale[:, group].to(dtype), zero[:, group].to(dtype)
        columns = W[:, start:stop].mT.contiguous()
        errors, chosen = torch.empty_like(columns), torch.empty_like(columns)
        for i, row in enumerate(U[start:stop, start:stop]):
            code = torch.div(columns[i], step, out=chosen[i]).round_().add_(middle_code).clamp_min_(0)
            torch.minimum(code, top, out=code)
            errors[i] = (columns[i] - (code - middle_code) * step) / row[i]
            columns[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
        codes[:, start:stop] = chosen.mT
        W[:, stop:] -= errors.mT.contiguous() @ U[start:stop, stop:]
    codes = codes[:, order.argsort()].int()
    found = zip(grids, *(tensor.chunk(len(grids)) for tensor in (codes, scale, zero)), strict=True)
    return [grid.rounded(*levels) for grid, *levels in found]


def _levels(W: torch.Tensor, grids: Sequence[Grid]) -> tuple[torch.Tensor, torch.Tensor]:
    """`Grid.levels` of W, which has the rows of the first of `grids`, then those of the next."""
    found = [grid.levels(part) for grid, part in zip(grids, W.chunk(len(grids)), strict=True)]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def turns(diagonal: torch.Tensor, group_size: int | None) -> list[torch.Tensor]:
    """The columns in the order of GPTQ, in the parts that pass on their errors together: groups, where there are any.

    Large inputs first, within a group and among groups, because what comes last has nobody to make up for its errors
    (act-order of the paper's code; its form that keeps groups together is GPTQModel's act_group_aware).
    """
    columns = torch.arange(len(diagonal), device=diagonal.device)
    if group_size is None:
        return list(torch.split(diagonal.argsort(descending=True, stable=True), COLUMNS))
    parts = sorted(torch.split(columns, min(group_size, len(columns))), key=lambda part: -float(diagonal[part].mean()))
    return [part[diagonal[part].argsort(descending=True, stable=True)] for part in parts]


def feedback(C: torch.Tensor) -> torch.Tensor:
    """The upper triangular U with Uᵀ U = (C + damping)⁻¹, float64."""
    H = C.to(torch.float64, copy=True)
    diagonal = H.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1  # where no input ever came
    U: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    return U
