"""Pivots, PIFA (arXiv 2501.19090)."""

from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_base import Pair, dense
from .svdexp_products import columns, reordered, rows


class PivotLinear(Pair):
    """A layer whose matrix is kept as r pivots and combinations of them (arXiv 2501.19090); its two forms follow.

    Two nn.Linear children, as in LowRankLinear, and `order`, a permutation of the shorter side's indices.
    """

    kind: ClassVar[str] = "pivot"
    order: torch.Tensor

    @classmethod
    def empty(cls, n: int, rank: int | None, m: int, bias: bool, **how: Any) -> "PivotLinear":
        """A layer of the form that belongs to its shape."""
        assert rank is not None
        return pivot_form(m, n)(n, rank, m, bias, **how)

    def __init__(self, pivots: nn.Linear, coefficients: nn.Linear, width: int):
        super().__init__()
        self.pivots, self.coefficients = pivots, coefficients
        # An integer buffer is saved, moved with the layer, and left alone by casts to another number format.
        self.register_buffer("order", torch.arange(width, dtype=index_type(width), device=pivots.weight.device))

    def validate(self) -> None:
        """Check what a file may have put into `order`.

        Raises:
            ValueError: it is not a permutation.
        """
        width = len(self.order)
        if not torch.equal(self.order.sort().values, torch.arange(width).to(self.order)):
            raise ValueError(f"its order is not a permutation of {width} indices")


class ColumnPivots(PivotLinear):
    """y = P (x[pivots] + C x[others]) + b; `order` holds the r pivots, then the others, (n,)."""

    form: ClassVar[str | None] = "columns"

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__(dense(rank, m, bias, **kwargs), dense(n - rank, rank, False, **kwargs), n)

    @property
    def weight(self) -> torch.Tensor:
        """W', (m, n), its columns in their own places."""
        P = self.pivots.weight
        return torch.cat([P, P @ self.coefficients.weight], dim=1)[:, self.order.argsort()]

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the output side."""
        return self.pivots.bias

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(r, m)."""
        return self.pivots.in_features, self.pivots.out_features

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r)."""
        sizes = [self.pivots.in_features, self.coefficients.in_features]
        pivots, others = torch.split(reordered(x, self.order), sizes, dim=-1)
        h: torch.Tensor = pivots + self.coefficients(others)
        return h

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m)."""
        y: torch.Tensor = self.pivots(latent)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        return columns(self._buffers["order"], self._modules["coefficients"], self._modules["pivots"], x)


class RowPivots(PivotLinear):
    """y = [P x, C P x][order] + b with r pivot rows P (r, n) of W' and C (m − r, r); `order` is (m,).

    The bias is a parameter of its own: in the children it would be rounded together with C times itself.
    """

    form: ClassVar[str | None] = "rows"

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__(dense(n, rank, False, **kwargs), dense(rank, m - rank, False, **kwargs), m)
        self.bias = nn.Parameter(torch.zeros(m, **kwargs)) if bias else None

    @property
    def weight(self) -> torch.Tensor:
        """W', (m, n), its rows in their own places."""
        P = self.pivots.weight
        return torch.cat([P, self.coefficients.weight @ P])[self.order.int()]

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(r, m)."""
        return self.pivots.out_features, len(self.order)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r), the outputs that are pivots."""
        h: torch.Tensor = self.pivots(x)
        return h

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m)."""
        y = reordered(torch.cat([latent, self.coefficients(latent)], dim=-1), self.order)
        return y if self.bias is None else y + self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        return rows(self._modules["pivots"], self._modules["coefficients"], self._buffers["order"], self.bias, x)


def index_type(width: int) -> torch.dtype:
    """The narrowest signed integers that number `width` rows or columns."""
    return torch.int16 if width <= torch.iinfo(torch.int16).max + 1 else torch.int32


def pivot_form(m: int, n: int) -> type[ColumnPivots] | type[RowPivots]:
    """The form of a pivot layer with a matrix of shape (m, n): the shorter side is reordered."""
    return RowPivots if m < n else ColumnPivots
