"""Codes and steps made better in turn, each where the other is: what a walk of GPTQ leaves to be gained.

    tr(Δ C Δᵀ),   Δ = W − step · (code − zero)

With all else fixed it is a parabola in any one code, whose best value on the grid is the nearest to its vertex: cyclic
coordinate descent (QuantEase, arXiv 2309.01885), here from GPTQ's codes. With all codes fixed it is a parabola in the
steps of a row: least squares, ours. Neither step ever makes it larger, C being damped as for GPTQ.
"""

import torch

from svdexp.models.portable.svdexp_bits import middle, widened
from svdexp.storage.rounding import Grid, Inputs, Rounded

# How many columns' codes move the errors of all others at once.
COLUMNS = 64
# Of the mean curvature: how much steps are drawn to what they are, where a group's codes leave them open.
RIDGE = 1e-6


def polished(W: torch.Tensor, C: torch.Tensor, grid: Grid, rounded: Rounded, rounds: int) -> Rounded:
    """`rounded`, codes of W (rows, columns) for inputs of the second moment C, after as many rounds of both steps."""
    H, V = Inputs.of(C).damped, W.mT.double()
    columns, size = len(V), grid.group_size
    scale = rounded.scale.mT.double()
    zero = torch.full_like(scale, middle(grid.bits)) if rounded.zero is None else rounded.zero.mT.double()
    zeros = each(zero, columns, size)
    codes = rounded.codes.mT.double() - zeros
    for _ in range(rounds):
        scale = fitted(V, H, codes, scale, size)
        steps = each(scale, columns, size)
        codes = descended(H @ (V - codes * steps), H, codes, steps, -zeros, grid.highest - zeros)
    return Rounded((codes + zeros).mT.int(), scale.mT.half(), rounded.zero)


def each(levels: torch.Tensor, columns: int, size: int | None) -> torch.Tensor:
    """Of every column what its group has: (groups, rows) to (columns, rows)."""
    return widened(levels.mT, columns, size).mT.expand(columns, -1)


def fitted(
    V: torch.Tensor, H: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, size: int | None
) -> torch.Tensor:
    """Steps (groups, rows), float16 numbers, that lose least with these codes; a row that would lose more keeps them.

    Args:
        V: the matrix, (columns, rows).
        H: second moment of the inputs, positive definite.
        codes: less those of zero, (columns, rows).
        scale: the steps so far, (groups, rows).
        size: columns of a group; None: all.
    """
    columns, count = len(V), len(scale)
    parts = list(torch.arange(columns, device=V.device).split(size or columns))
    curvature = V.new_zeros(V.shape[1], count, count)
    for a, part in enumerate(parts):
        seen = (H[:, part] @ codes[part]) * codes  # (columns, rows)
        curvature[:, a] = torch.stack([seen[other].sum(0) for other in parts], 1)
    wanted = (H @ V) * codes
    slope = torch.stack([wanted[part].sum(0) for part in parts], 1)
    drawn = RIDGE * curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    system = curvature + drawn[:, None, None] * torch.eye(count).to(V)
    best = torch.linalg.solve(system, (slope + drawn[:, None] * scale.mT)[..., None])[..., 0].mT.half().double()
    losses = [lost(V - codes * each(levels, columns, size), H) for levels in (scale, best)]
    better = (losses[1] < losses[0]) & (best > 0).all(0)
    return torch.where(better, best, scale)


def descended(
    E: torch.Tensor,
    H: torch.Tensor,
    codes: torch.Tensor,
    steps: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
) -> torch.Tensor:
    """The codes (columns, rows), each in turn the best there is beside the others; all are less those of zero.

    Args:
        E: H Δᵀ at the beginning, (columns, rows); it is written to.
        H: second moment of the inputs, positive definite.
        codes: at the beginning.
        steps, lowest, highest: of every code.
    """
    codes = codes.clone()
    for start in range(0, len(codes), COLUMNS):
        few = slice(start, min(start + COLUMNS, len(codes)))
        square, errors, moved = H[few, few], E[few].clone(), torch.empty_like(E[few])
        for i, j in enumerate(range(start, few.stop)):
            vertex = codes[j] + errors[i] / (square[i, i] * steps[j])
            code = torch.minimum(torch.maximum(vertex.round(), lowest[j]), highest[j])
            torch.mul(code - codes[j], steps[j], out=moved[i])
            codes[j] = code
            errors[i + 1 :].addr_(square[i + 1 :, i], moved[i], alpha=-1)
        E.addmm_(H[:, few], moved, alpha=-1)
    return codes


def lost(D: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """Of every row of Δ, whose transpose is D (columns, rows), its part of tr(Δ H Δᵀ)."""
    return ((H @ D) * D).sum(0)
