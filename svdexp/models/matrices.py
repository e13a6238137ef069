"""A model as svdexp sees it: blocks of matrices."""

from dataclasses import dataclass

# Name of a matrix → rank; None does not factorise it: it stays dense, or whole in a form of the storage.
Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Matrix:
    """One matrix that can be compressed: a layer y = W x + b with W of shape (m, n).

    `group` is the name of the block it belongs to, or its own name outside the blocks.
    """

    name: str
    group: str
    m: int
    n: int
