"""Products of which half is zeros, or the mirror image of the other half: in block rows, most of that is left out.

R is a lower triangle (k, k). Up to NARROWEST rows each is one product, as if written down plainly.
"""

from collections.abc import Iterator

import torch

# Into how many block rows k rows are cut, and how many rows such a part has at least: narrower products are slow.
PARTS, NARROWEST = 8, 256


def parts(k: int) -> Iterator[slice]:
    """Block rows, the first ones first."""
    width = max(-(-k // PARTS), NARROWEST)
    for start in range(0, k, width):
        yield slice(start, min(start + width, k))


def lower_times(R: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """R X of X (k, l)."""
    found = X.new_empty(X.shape)
    for part in parts(len(R)):
        torch.mm(R[part, : part.stop], X[: part.stop], out=found[part])
    return found


def upper_times(L: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """L X of an upper triangle L (k, k) and X (k, l)."""
    found = X.new_empty(X.shape)
    for part in parts(len(L)):
        torch.mm(L[part, part.start :], X[part.start :], out=found[part])
    return found


def lower_congruence(R: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Rᵀ S R of a symmetric S (k, k): on and below the diagonal; above it stands anything."""
    half, found = S.new_empty(S.shape), S.new_zeros(S.shape)  # of Rᵀ S what is on and above the diagonal
    for part in parts(len(R)):
        torch.mm(R[part.start :, part].mT, S[part.start :, part.start :], out=half[part, part.start :])
    for part in parts(len(R)):
        torch.mm(R[part.start :, part].mT, half[: part.stop, part.start :].mT, out=found[part, : part.stop])
    return found


def symmetric_product(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """X Yᵀ (k, k) of X and Y (k, l), where that is known to be symmetric."""
    found = X.new_empty(len(X), len(Y))
    for part in parts(len(X)):
        torch.mm(X[part], Y[: part.stop].mT, out=found[part, : part.stop])
        found[: part.start, part] = found[part, : part.start].mT
    return found
