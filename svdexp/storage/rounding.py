"""From matrices to the codes and scales of a QuantisedLinear: to the nearest, or by GPTQ (arXiv 2210.17323).

The grid is symmetric: a group's largest magnitude is 2^(bits − 1) − ½ steps, so every number lies within half a step of
a code. Scales are rounded up to float16 first, and codes are chosen for what the file will hold.
"""

from dataclasses import dataclass

import torch

from svdexp.models.portable.svdexp_quantised import groups, middle, widened

# Relative to the mean of the diagonal, as in the paper.
DAMPING = 0.01
# How many columns pass on their errors together where there are no groups.
COLUMNS = 128
SMALLEST = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True)
class Rounded:
    """A matrix W (rows, columns) as scale · (code − 2^(bits − 1)).

    Attributes:
        codes: (rows, columns), integers from 0 to 2^bits − 1.
        scale: (rows, groups), float16; infinite or NaN where W is beyond it.
    """

    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` bits with one scale for `group_size` neighbours in a row, or for the whole row."""

    bits: int
    group_size: int | None

    def scales(self, W: torch.Tensor) -> torch.Tensor:
        """Of every group of W (rows, columns), (rows, groups), float16."""
        size = min(self.group_size or W.shape[1], W.shape[1])
        padded = torch.nn.functional.pad(W.abs(), (0, -W.shape[1] % size))
        peaks = padded.view(len(W), groups(W.shape[1], self.group_size), size).amax(2)
        return rounded_up(peaks / (middle(self.bits) - 0.5))

    def nearest(self, W: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The codes of W for steps that broadcast to it, as numbers."""
        return (W / step).round().add(middle(self.bits)).clamp(0, 2 * middle(self.bits) - 1)

    def numbers(self, rounded: Rounded) -> torch.Tensor:
        """The matrix (rows, columns) that is stored, float64."""
        steps = widened(rounded.scale.double(), rounded.codes.shape[1], self.group_size)
        return (rounded.codes.double() - middle(self.bits)) * steps


def rounded_up(scale: torch.Tensor) -> torch.Tensor:
    """The next float16 that is no smaller, and positive."""
    half = scale.clamp_min(SMALLEST).half()
    return (half.view(torch.int16) + (half.double() < scale).short()).view(torch.float16)


def to_nearest(W: torch.Tensor, grid: Grid) -> Rounded:
    """Every entry by itself."""
    W = W.double()
    scale = grid.scales(W)
    return Rounded(grid.nearest(W, widened(scale.double(), W.shape[1], grid.group_size)).int(), scale)


def gptq(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Rounded:
    """Codes for which tr(Δ C Δᵀ), Δ what rounding changes, is small.

    Column after column is rounded to the nearest, and the columns behind it move to make up for its error. With the
    damped C⁻¹ = Uᵀ U, U upper triangular, the error e of column i moves column j by −e U_ij / U_ii. A group's scale is
    chosen when its first column is reached. Columns come as `turns` says.

    Args:
        W: (rows, columns).
        C: second moment of the inputs, (columns, columns), in any multiple.
        grid: codes and groups.
    """
    scale = grid.scales(W.double())
    parts = turns(C.diagonal(), grid.group_size)
    order = torch.cat(parts)
    W, U = W[:, order].double(), feedback(C[order][:, order])
    codes = torch.empty_like(W)
    stop = 0
    for part in parts:
        start, stop = stop, stop + len(part)
        group = int(part[0]) // grid.group_size if grid.group_size else 0
        if grid.group_size:
            scale[:, group : group + 1] = grid.scales(W[:, start:stop])
        step = scale[:, group].double()
        errors = torch.empty_like(W[:, start:stop])
        for i in range(start, stop):
            codes[:, i] = grid.nearest(W[:, i], step)
            error = (W[:, i] - (codes[:, i] - middle(grid.bits)) * step) / U[i, i]
            W[:, i + 1 : stop].addr_(error, U[i, i + 1 : stop], alpha=-1)
            errors[:, i - start] = error
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return Rounded(codes[:, order.argsort()].int(), scale)


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
