"""The layers that take the place of y = W x + b with W of shape (m, n); torch is all they need.

Each keeps a matrix W' of rank r near W in its own way, and has

    kind         its key in `LAYERS`, the closed list that a checkpoint may name
    weight       W', (m, n): some architectures look at `layer.weight` of their projections by name
    bias         b, (m,), or None
    validate()   where a damaged file could hold what its shapes do not show
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn


class LowRankLinear(nn.Module):
    """y = A (B x) + b.

    Two nn.Linear children, so peft, GPTQ tools and serving engines see ordinary linear layers. Their names
    end like no projection of a known architecture, because such tools match modules by suffix.
    """

    kind: ClassVar[str] = "factors"

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__()
        self.rank_in = nn.Linear(n, rank, bias=False, **kwargs)
        self.rank_out = nn.Linear(rank, m, bias=bias, **kwargs)

    @property
    def weight(self) -> torch.Tensor:
        """A B, (m, n)."""
        return self.rank_out.weight @ self.rank_in.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the output side."""
        return self.rank_out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.rank_out(self.rank_in(x))
        return y


class PivotLinear(nn.Module):
    """A layer whose matrix is kept as r pivots and combinations of them (arXiv 2501.19090); its two forms follow.

    Two nn.Linear children, as in LowRankLinear, and `order`, a permutation of the shorter side's indices.
    """

    kind: ClassVar[str] = "pivot"
    order: torch.Tensor

    def __init__(self, pivots: nn.Linear, coefficients: nn.Linear, width: int):
        super().__init__()
        self.pivots, self.coefficients = pivots, coefficients
        # An integer buffer is saved, moved with the layer, and left alone by casts to another number format.
        self.register_buffer("order", torch.arange(width, dtype=index_type(width), device=pivots.weight.device))

    def reordered(self, x: torch.Tensor) -> torch.Tensor:
        """The channels of x (…, width) by `order`.

        By gather, because on prefill activations on a CPU indexing takes twice as long, and index_select thrice.
        """
        return x.gather(-1, self.order.long().expand_as(x))

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

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__(nn.Linear(rank, m, bias=bias, **kwargs), nn.Linear(n - rank, rank, bias=False, **kwargs), n)

    @property
    def weight(self) -> torch.Tensor:
        """W', (m, n), its columns in their own places."""
        P = self.pivots.weight
        return torch.cat([P, P @ self.coefficients.weight], dim=1)[:, self.order.argsort()]

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the output side."""
        return self.pivots.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        sizes = [self.pivots.in_features, self.coefficients.in_features]
        pivots, others = torch.split(self.reordered(x), sizes, dim=-1)
        y: torch.Tensor = self.pivots(pivots + self.coefficients(others))
        return y


class RowPivots(PivotLinear):
    """y = [P x, C P x][order] + b with r pivot rows P (r, n) of W' and C (m − r, r); `order` is (m,).

    The bias is a parameter of its own: in the children it would be rounded together with C times itself.
    """

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__(nn.Linear(n, rank, bias=False, **kwargs), nn.Linear(rank, m - rank, bias=False, **kwargs), m)
        self.bias = nn.Parameter(torch.zeros(m, **kwargs)) if bias else None

    @property
    def weight(self) -> torch.Tensor:
        """W', (m, n), its rows in their own places."""
        P = self.pivots.weight
        return torch.cat([P, self.coefficients.weight @ P])[self.order.int()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        pivots = self.pivots(x)
        y = self.reordered(torch.cat([pivots, self.coefficients(pivots)], dim=-1))
        return y if self.bias is None else y + self.bias


class RemapLinear(nn.Module):
    """y = A (B x) + b with factors that stay in 8 and 16 bits in memory and become numbers when they are used.

    With s = min(m, n), component i of A is scale_i · [out_codes[:, i]; …], that of B scale_i · [in_codes[i], …], and
    `rest` holds what is longer than s: the last rows of A, (m − s, r), or columns of B, (r, n − s). Everything is an
    integer buffer, float16 in int16's clothes, because a cast of the model to another number format would widen it.
    """

    kind: ClassVar[str] = "remap"
    in_codes: torch.Tensor
    out_codes: torch.Tensor
    rest: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__()
        self.in_features, self.out_features = n, m
        side, device = min(m, n), kwargs.get("device")
        rest = (m - side, rank) if m > n else (rank, n - side)
        shapes = {"in_codes": (rank, side), "out_codes": (side, rank), "rest": rest, "scale": (rank,)}
        for name, shape in shapes.items():
            dtype = torch.int8 if name.endswith("codes") else torch.int16
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(m, **kwargs)) if bias else None

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A (m, r) and B (r, n) as numbers of `dtype`."""
        scale, rest = self.scale.view(torch.float16).to(dtype), self.rest.view(torch.float16).to(dtype)
        A, B = self.out_codes.to(dtype) * scale, self.in_codes.to(dtype) * scale[:, None]
        if self.out_features > self.in_features:
            A = torch.cat([A, rest])
        elif self.in_features > self.out_features:
            B = torch.cat([B, rest], dim=1)
        return A, B

    @property
    def weight(self) -> torch.Tensor:
        """A B, (m, n), float32."""
        A, B = self.factors(torch.float32)
        return A @ B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        A, B = self.factors(x.dtype)
        return nn.functional.linear(nn.functional.linear(x, B), A, self.bias)

    def validate(self) -> None:
        """Check what a file may have put into the 16-bit parts.

        Raises:
            ValueError: they are not finite.
        """
        if not all(bool(part.view(torch.float16).isfinite().all()) for part in (self.scale, self.rest)):
            raise ValueError("its 16-bit parts are not finite")


def index_type(width: int) -> torch.dtype:
    """The narrowest signed integers that number `width` rows or columns."""
    return torch.int16 if width <= torch.iinfo(torch.int16).max + 1 else torch.int32


def pivot_form(m: int, n: int) -> type[ColumnPivots] | type[RowPivots]:
    """The form of a pivot layer with a matrix of shape (m, n): the shorter side is reordered."""
    return RowPivots if m < n else ColumnPivots


def pivot_layer(n: int, rank: int, m: int, bias: bool, **kwargs: Any) -> PivotLinear:
    """A pivot layer of the form that belongs to its shape."""
    return pivot_form(m, n)(n, rank, m, bias, **kwargs)


# What makes a layer of each kind, called with (n, rank, m, bias, dtype=…, device=…), for a checkpoint to fill.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    LowRankLinear.kind: LowRankLinear,
    PivotLinear.kind: pivot_layer,
    RemapLinear.kind: RemapLinear,
}
