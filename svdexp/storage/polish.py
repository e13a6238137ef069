"""Codes and steps made better in turn, each where the other is: what a walk of GPTQ leaves to be gained.

    tr(Δ C Δᵀ),   Δ = W − step · (code − zero)

With all else fixed it is a parabola in any one code, whose best value on the grid is the nearest to its vertex: cyclic
coordinate descent (QuantEase, arXiv 2309.01885), here from GPTQ's codes. With all codes fixed it is a parabola in the
steps of a row: least squares, ours. Neither step ever makes it larger, C being damped as for GPTQ.
"""

from collections.abc import Sequence

import torch

from svdexp.models.portable.svdexp_bits import middle, widened
from svdexp.storage.rounding import Grid, Inputs, Rounded

# How many columns' codes move the errors of all others at once.
COLUMNS = 64
# Of the mean curvature: how much steps are drawn to what they are, where a group's codes leave them open.
RIDGE = 1e-6


def polished(W: torch.Tensor, C: torch.Tensor, grid: Grid, rounded: Rounded, rounds: int) -> Rounded:
    """`rounded`, codes of W (rows, columns) for inputs of the second moment C, after as many rounds of both steps."""
    H = Inputs.of(C).damped
    wanted, columns, size = H @ W.mT.double(), W.shape[1], grid.group_size
    scale = rounded.scale.mT.double()
    zero = torch.full_like(scale, middle(grid.bits)) if rounded.zero is None else rounded.zero.mT.double()
    zeros = each(zero, columns, size)
    codes = rounded.codes.mT.double() - zeros
    for _ in range(rounds):
        scale = fitted(wanted, H, codes, scale, size)
        steps = each(scale, columns, size)
        codes = descended(wanted - H @ (codes * steps), H, codes, steps, -zeros, grid.highest - zeros)
    return Rounded((codes + zeros).mT.int(), scale.mT.half(), rounded.zero)


def each(levels: torch.Tensor, columns: int, size: int | None) -> torch.Tensor:
    """Of every column what its group has: (groups, rows) to (columns, rows)."""
    return widened(levels.mT, columns, size).mT.expand(columns, -1)


def fitted(
    wanted: torch.Tensor, H: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, size: int | None
) -> torch.Tensor:
    """Steps (groups, rows), float16 numbers, that lose least with these codes; a row that would lose more keeps them.

    Of a row's steps s it is s · A s − 2 s · b that they change.

    Args:
        wanted: H Wᵀ, (columns, rows).
        H: second moment of the inputs, positive definite.
        codes: less those of zero, (columns, rows).
        scale: the steps so far, (groups, rows).
        size: columns of a group; None: all.
    """
    size = size or len(codes)
    parts = [slice(start, start + size) for start in range(0, len(codes), size)]
    A = torch.stack([sums_by(parts, (H[:, part] @ codes[part]) * codes) for part in parts], 1)  # (rows, groups, groups)
    b = sums_by(parts, wanted * codes)
    drawn = RIDGE * A.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    system = A + drawn[:, None, None] * torch.eye(len(parts)).to(A)
    old = scale.mT
    new = torch.linalg.solve(system, (b + drawn[:, None] * old)[..., None])[..., 0].half().double()

    def lost(s: torch.Tensor) -> torch.Tensor:
        return ((A @ s[..., None])[..., 0] * s - 2 * s * b).sum(1)

    better = (lost(new) < lost(old)) & (new > 0).all(1)
    return torch.where(better[:, None], new, old).mT


def sums_by(parts: Sequence[slice], x: torch.Tensor) -> torch.Tensor:
    """Sums over the columns of each part: (columns, rows) to (rows, groups)."""
    return torch.stack([x[part].sum(0) for part in parts], 1)


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
