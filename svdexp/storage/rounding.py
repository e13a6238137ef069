"""From matrices to the codes and scales of a QuantisedLinear: to the nearest, or by GPTQ (arXiv 2210.17323).

On a symmetric grid a group's largest magnitude is 2^(bits − 1) − ½ steps, so every number lies within half a step of a
code. Scales are rounded up to float16 first, and codes are chosen for what the file will hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from svdexp.models.portable.svdexp_bits import middle, widened

# Relative to the mean of the diagonal, as in the paper.
DAMPING = 0.01
# How many columns pass on their errors together where there are no groups.
COLUMNS = 128
# How many columns' errors move the others of their part at once.
AT_ONCE = 8
SMALLEST = 2.0**-24  # the smallest positive float16
# Of the step that reaches a group's largest number: what is tried where steps are fitted.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# How many rows are tried at once: what they hold of a group stays in a core's own cache.
ROWS = 2048


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
    symmetric. With `fit` its step may be a share of that, which cuts what lies far out off and has less to lose within:
    the one of SHARES at which the group loses least.
    """

    bits: int
    group_size: int | None
    zero_points: bool = False
    fit: bool = False

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def levels(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale, float16, and code of zero, float64, of every group of W (rows, columns), both (rows, groups)."""
        size = min(self.group_size or W.shape[1], W.shape[1])
        return self.levels_of(torch.nn.functional.pad(W, (0, -W.shape[1] % size)).reshape(len(W), -1, size))

    def levels_of(self, parts: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of groups that are told apart already, (rows, groups, size).

        `weights` are those of the squares of their errors, (size,); None: all are one.
        """
        scale, zero = self._reaching(parts)
        if not self.fit:
            return scale, zero
        weights = parts.new_ones(parts.shape[2]) if weights is None else weights
        lowest, least, best = (-zero).to(parts)[..., None], parts.new_full(zero.shape, torch.inf), scale
        for share in SHARES:
            tried = rounded_up(share * scale.double())
            step = tried.to(parts)[..., None]
            steps = torch.div(parts, step).round_()
            torch.minimum(torch.maximum(steps, lowest, out=steps), lowest + self.highest, out=steps)
            lost = torch.addcmul(parts, steps, step, value=-1, out=steps).square_()
            lost = torch.mv(lost.flatten(0, 1), weights).view(scale.shape)
            better = lost < least
            least, best = torch.where(better, lost, least), torch.where(better, tried, best)
        return best, zero

    def _reaching(self, parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The levels with which a grid reaches all numbers of its group."""
        if not self.zero_points:
            scale = rounded_up(parts.abs().amax(2) / (middle(self.bits) - 0.5))
            return scale, torch.full_like(scale, middle(self.bits), dtype=torch.float64)
        low, high = parts.amin(2).clamp_max(0), parts.amax(2).clamp_min(0)
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
    """Codes of W (rows, columns) on one grid for which tr(Δ C Δᵀ), Δ what rounding changes, is small: `walk`."""
    (rounded,) = walk(W, Inputs.of(C), [grid]).rounded()
    return rounded


@dataclass(frozen=True)
class Inputs:
    """What GPTQ asks of the second moment C of a layer's inputs, whatever the groups.

    Attributes:
        diagonal: of C, (columns,).
        damped: C and a share of its mean diagonal, (columns, columns), float64.
    """

    diagonal: torch.Tensor
    damped: torch.Tensor

    @classmethod
    def of(cls, C: torch.Tensor) -> "Inputs":
        """C (columns, columns) in any multiple."""
        H = C.to(torch.float64, copy=True)
        diagonal = H.diagonal()
        diagonal += DAMPING * diagonal.mean()
        diagonal[diagonal == 0] = 1  # where no input ever came
        return cls(C.diagonal(), H)

    def feedback(self, order: torch.Tensor) -> torch.Tensor:
        """The upper triangular U with Uᵀ U the inverse of what is damped, its columns in this order, float64.

        With H = R Rᵀ, R upper triangular, which is a Cholesky factor from the last column to the first, U is R⁻¹.
        """
        back = order.flip(0)
        R = torch.linalg.cholesky(self.damped[back][:, back]).flip(0, 1)
        U: torch.Tensor = torch.linalg.solve_triangular(R, torch.eye(len(R)).to(R), upper=True)
        return U


@dataclass(frozen=True)
class Walk:
    """A matrix W on several grids, transposed and side by side: R = rows · grids.

    Attributes:
        grids: whose groups are of one size.
        order: in which columns were taken.
        steps: how many steps every number is from zero, (columns, R), columns in order.
        scale, zero: of every group, (groups, R), groups as they stand in W.
    """

    grids: Sequence[Grid]
    order: torch.Tensor
    steps: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def rounded(self) -> Iterator[Rounded]:
        """The codes on each grid."""
        steps = self.steps[self.order.argsort()]
        parts = (tensor.chunk(len(self.grids), 1) for tensor in (steps, self.scale, self.zero))
        for grid, steps, scale, zero in zip(self.grids, *parts, strict=True):
            codes = steps + widened(zero.mT, len(steps), grid.group_size).mT
            yield grid.rounded(codes.mT.int().contiguous(), scale.mT.contiguous(), zero.mT)

    def errors(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """W (rows, columns) less what each grid holds of it, (rows, columns), in the format of the walk."""
        back, W = self.order.argsort(), W.mT.to(self.steps).contiguous()
        parts = (tensor.chunk(len(self.grids), 1) for tensor in (self.steps, self.scale))
        for grid, steps, scale in zip(self.grids, *parts, strict=True):
            size = min(grid.group_size or len(W), len(W))
            held = steps[back].mul_(scale.to(steps).repeat_interleave(size, 0)[: len(W)])
            yield torch.sub(W, held, out=held).mT


def walk(W: torch.Tensor, inputs: Inputs, grids: Sequence[Grid], dtype: torch.dtype = torch.float64) -> Walk:
    """The codes of W (rows, columns) on each of `grids` for which tr(Δ C Δᵀ), Δ what rounding changes, is small.

    Column after column is rounded to the nearest, and the columns behind it move to make up for its error. With the
    damped C⁻¹ = Uᵀ U, U upper triangular, the error e of column i moves column j by −e U_ij / U_ii. A group's grid is
    chosen when its first column is reached; where steps are fitted, for the least Σ (e / U_ii)², which is what errors
    cost once all columns behind have made up for them. Columns come as `turns` says. To this walk several grids are
    more rows, so they cost no second U. W lies transposed, so that a column is contiguous; it moves for a few columns'
    errors at once, and for those within them when its turn comes.

    Args:
        W: (rows, columns).
        inputs: what is known of the second moment C.
        grids: codes and groups.
        dtype: the number format of the walk.
    """
    size = grids[0].group_size
    parts = turns(inputs.diagonal, size)
    order = torch.cat(parts)
    U, V = inputs.feedback(order).to(dtype), W.mT[order].to(dtype).repeat(1, len(grids))
    weights = (U.diagonal().square().mean() / U.diagonal().square()).nan_to_num(1.0)
    count = len(parts) if size else 1
    scale = torch.empty(count, V.shape[1], dtype=torch.float16, device=W.device)
    zero = torch.empty(count, V.shape[1], dtype=torch.float64, device=W.device)
    highest = torch.tensor([grid.highest for grid in grids], dtype=dtype, device=W.device).repeat_interleave(len(W))
    if not size:
        scale[0], zero[0] = _levels(V, grids, weights)
    stop = 0
    for part in parts:
        start, stop = stop, stop + len(part)
        group = int(part[0]) // size if size else 0
        columns, inner = V[start:stop], U[start:stop, start:stop]
        if size:
            scale[group], zero[group] = _levels(columns, grids, weights[start:stop])
        lowest = -zero[group].to(dtype)
        errors = _round_columns(columns, inner, scale[group].to(dtype), lowest, highest + lowest)
        V[stop:].addmm_(U[start:stop, stop:].mT, errors, alpha=-1)
    return Walk(grids, order, V, scale, zero)


def _round_columns(
    columns: torch.Tensor, U: torch.Tensor, step: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """Replace each of `columns` (k, R) by how many steps (R,) it is from zero; returns what it passes on, (k, R).

    U is (k, k). `lowest` and `highest` are the numbers of steps that codes can say, (R,).
    """
    errors = torch.empty_like(columns)
    for start in range(0, len(columns), AT_ONCE):
        few = slice(start, min(start + AT_ONCE, len(columns)))
        for i in range(start, few.stop):
            column = columns[i]
            if i > start:
                column.addmv_(errors[start:i].mT, U[start:i, i], alpha=-1)
            steps = torch.div(column, step).round_()
            torch.minimum(torch.maximum(steps, lowest, out=steps), highest, out=steps)
            torch.addcmul(column, steps, step, value=-1, out=errors[i]).div_(U[i, i])
            column.copy_(steps)
        columns[few.stop :].addmm_(U[few, few.stop :].mT, errors[few], alpha=-1)
    return errors


def _levels(columns: torch.Tensor, grids: Sequence[Grid], weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Grid.levels` of one group of columns (size, R), which has the rows of the first of `grids`, then of the next."""
    found = [
        grid.levels_of(part.mT[:, None], weights)
        for grid, rows in zip(grids, columns.chunk(len(grids), 1), strict=True)
        for part in torch.split(rows, ROWS, 1)
    ]
    return torch.cat([scale[:, 0] for scale, _ in found]), torch.cat([zero[:, 0] for _, zero in found])


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
