"""The layers that take the place of y = W x + b with W of shape (m, n); torch is all they need.

Each keeps a matrix W' of rank r near W in its own way, and has

    kind         its key in `LAYERS`, the closed list that a checkpoint may name
    weight       W', (m, n): some architectures look at `layer.weight` of their projections by name
    bias         b, (m,), or None
    validate()   where a damaged file could hold what its shapes do not show
"""

from collections.abc import Callable
from math import ceil, lcm
from typing import Any, ClassVar

import torch
from torch import nn


class Pair(nn.Module):
    """Two nn.Linear children, in whose places other libraries put layers of their own."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Take a child, whatever its shape.

        On a CPU with bfloat16 units bitsandbytes packs 4-bit weights for a kernel that takes multiples of 32 outputs
        and 64 inputs only, and raises at others, such as most ranks: these go the way that all go on other CPUs.
        """
        if getattr(value, "support_avx512bf16_for_cpu", False) and (value.out_features % 32 or value.in_features % 64):
            value.support_avx512bf16_for_cpu = False
        super().__setattr__(name, value)


class LowRankLinear(Pair):
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
    def weight(self) -> torch.Tensor | None:
        """A B, (m, n); None where another library has put layers without weights in the children's places."""
        A, B = (getattr(side, "weight", None) for side in (self.rank_out, self.rank_in))
        return None if A is None or B is None else A @ B

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the output side."""
        return self.rank_out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.rank_out(self.rank_in(x))
        return y


class PivotLinear(Pair):
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


class CodedLinear(nn.Module):
    """A layer of integer buffers, which says nothing of the format that the model's numbers have: `dtype` is that one.

    Casts of the model change it.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype or torch.get_default_dtype()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "CodedLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


class RemapLinear(CodedLinear):
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
        super().__init__(kwargs.get("dtype"))
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
        """A B, (m, n), a product in float32."""
        A, B = self.factors(torch.float32)
        return (A @ B).to(self.dtype)

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


class QuantisedLinear(CodedLinear):
    """y = A (B x) + b with factors kept as integer codes, rounded in groups, that become numbers when they are used.

    Where `rank` is None, W' is not factorised and A holds all of it.

    An entry of a factor is scale · (code − 2^(code_bits − 1)). `group_size` neighbours in a row, along the factor's
    inputs, share a scale, and what is left at the end of a row is a group, too; None makes each row one group. Codes
    are packed row by row (`pack`), scales (rows, groups) are float16 in int16's clothes, as in RemapLinear.
    """

    kind: ClassVar[str] = "quantised"

    def __init__(
        self, n: int, rank: int | None, m: int, bias: bool, *, code_bits: int, group_size: int | None, **kwargs: Any
    ):
        super().__init__(kwargs.get("dtype"))
        if code_bits not in CODE_BITS:
            raise ValueError(f"codes have {', '.join(map(str, CODE_BITS))} bits, not {code_bits}")
        if group_size is not None and (type(group_size) is not int or group_size < 1):
            raise ValueError(f"a group has at least 1 code, not {group_size}")
        self.code_bits, self.group_size = code_bits, group_size
        self.shapes = {"out": (m, n)} if rank is None else {"in": (rank, n), "out": (m, rank)}
        for side, (rows, columns) in self.shapes.items():
            packed, scales = packed_bytes(rows * columns, code_bits), (rows, groups(columns, group_size))
            device = kwargs.get("device")
            self.register_buffer(f"{side}_codes", torch.zeros(packed, dtype=torch.uint8, device=device))
            self.register_buffer(f"{side}_scale", torch.zeros(scales, dtype=torch.int16, device=device))
        self.bias = nn.Parameter(torch.zeros(m, **kwargs)) if bias else None

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """B (r, n), side "in", or A (m, r) or W' (m, n), side "out", as numbers of `dtype`."""
        rows, columns = self.shapes[side]
        codes = unpack(self.get_buffer(f"{side}_codes"), rows * columns, self.code_bits).view(rows, columns)
        scale = self.get_buffer(f"{side}_scale").view(torch.float16).to(dtype)
        return (codes.to(dtype) - middle(self.code_bits)) * widened(scale, columns, self.group_size)

    @property
    def weight(self) -> torch.Tensor:
        """A B, or what A holds alone, (m, n), a product in float32."""
        A = self.factor("out", torch.float32)
        return (A @ self.factor("in", torch.float32) if "in" in self.shapes else A).to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        if "in" in self.shapes:
            x = nn.functional.linear(x, self.factor("in", x.dtype))
        return nn.functional.linear(x, self.factor("out", x.dtype), self.bias)

    def validate(self) -> None:
        """Check what a file may have put into the scales.

        Raises:
            ValueError: they are not finite.
        """
        for side in self.shapes:
            if not bool(self.get_buffer(f"{side}_scale").view(torch.float16).isfinite().all()):
                raise ValueError("its scales are not finite")


# What QuantisedLinear packs: of these widths, few codes fill whole bytes.
CODE_BITS = (3, 4, 6, 8)


def middle(bits: int) -> int:
    """The code of zero."""
    return 1 << bits - 1


def groups(columns: int, group_size: int | None) -> int:
    """How many groups a row of `columns` codes has."""
    return 1 if group_size is None else ceil(columns / group_size)


def widened(scale: torch.Tensor, columns: int, group_size: int | None) -> torch.Tensor:
    """The scale of every code in a row, (rows, columns), or what broadcasts to it, from those of groups."""
    # A group is no longer than its row, whatever a file says.
    return scale if group_size is None else scale.repeat_interleave(min(group_size, columns), dim=1)[:, :columns]


def unit(bits: int) -> tuple[int, int]:
    """How many codes of `bits` bits fill how many bytes: 8 of 3 bits fill 3, 2 of 4 one, 4 of 6 three, 1 of 8 one."""
    return lcm(bits, 8) // bits, lcm(bits, 8) // 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed codes."""
    codes, size = unit(bits)
    return ceil(count / codes) * size


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (count,) below 2^bits in (packed_bytes,) of uint8, lowest bits first; zeros fill the last unit."""
    each, size = unit(bits)
    rows = nn.functional.pad(codes.int(), (0, -len(codes) % each)).view(-1, each)
    words = (rows << bits * torch.arange(each, device=codes.device)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(size, device=codes.device) & 255).flatten().to(torch.uint8)


def unpack(packed: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """The first `count` codes, (count,), of what `pack` made: uint8, or int32 where units take several bytes."""
    each, size = unit(bits)
    words = packed.view(-1, size)
    if size > 1:
        places = 8 * torch.arange(size, dtype=torch.int32, device=packed.device)
        words = (words.int() << places).sum(1, keepdim=True, dtype=torch.int32)
    places = bits * torch.arange(each, dtype=words.dtype, device=packed.device)
    return (words >> places & (1 << bits) - 1).flatten()[:count]


def index_type(width: int) -> torch.dtype:
    """The narrowest signed integers that number `width` rows or columns."""
    return torch.int16 if width <= torch.iinfo(torch.int16).max + 1 else torch.int32


def pivot_form(m: int, n: int) -> type[ColumnPivots] | type[RowPivots]:
    """The form of a pivot layer with a matrix of shape (m, n): the shorter side is reordered."""
    return RowPivots if m < n else ColumnPivots


def pivot_layer(n: int, rank: int, m: int, bias: bool, **kwargs: Any) -> PivotLinear:
    """A pivot layer of the form that belongs to its shape."""
    return pivot_form(m, n)(n, rank, m, bias, **kwargs)


# What makes a layer of each kind, called with (n, rank, m, bias, dtype=…, device=…) and its options, for a checkpoint
# to fill.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    LowRankLinear.kind: LowRankLinear,
    PivotLinear.kind: pivot_layer,
    RemapLinear.kind: RemapLinear,
    QuantisedLinear.kind: QuantisedLinear,
}
# The kinds that can keep a matrix whole, with a rank of None.
WHOLE = (QuantisedLinear.kind,)
# The options of each kind that has any: arguments of its constructor, and attributes of its layers.
OPTIONS: dict[str, tuple[str, ...]] = {QuantisedLinear.kind: ("code_bits", "group_size")}
