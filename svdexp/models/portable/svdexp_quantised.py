"""Factors, or whole matrices, in packed codes."""

from math import ceil, lcm
from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_base import CodedLinear


class QuantisedLinear(CodedLinear):
    """y = A (B x) + b with factors kept as integer codes, rounded in groups, that become numbers when they are used.

    Where `rank` is None, W' is not factorised and A holds all of it.

    An entry of a factor is scale · (code − zero). `group_size` neighbours in a row, along the factor's inputs, share a
    scale, and what is left at the end of a row is a group, too; None makes each row one group. Codes are packed row by
    row (`pack`), scales (rows, groups) are float16 in int16's clothes, as in RemapLinear. The code of zero is in the
    middle, 2^(code_bits − 1), or with `zero_points` each group has its own, (rows, groups), packed as codes are.
    """

    kind: ClassVar[str] = "quantised"
    options: ClassVar[tuple[str, ...]] = ("code_bits", "group_size")
    switches: ClassVar[tuple[str, ...]] = ("zero_points",)
    keeps_whole: ClassVar[bool] = True

    def __init__(
        self,
        n: int,
        rank: int | None,
        m: int,
        bias: bool,
        *,
        code_bits: int,
        group_size: int | None,
        zero_points: bool = False,
        **kwargs: Any,
    ):
        super().__init__(kwargs.get("dtype"))
        if code_bits not in CODE_BITS:
            raise ValueError(f"codes have {', '.join(map(str, CODE_BITS))} bits, not {code_bits}")
        if group_size is not None and (type(group_size) is not int or group_size < 1):
            raise ValueError(f"a group has at least 1 code, not {group_size}")
        self.code_bits, self.group_size, self.zero_points = code_bits, group_size, zero_points
        self.shapes = {"out": (m, n)} if rank is None else {"in": (rank, n), "out": (m, rank)}
        for side, (rows, columns) in self.shapes.items():
            packed, scales = packed_bytes(rows * columns, code_bits), (rows, groups(columns, group_size))
            device = kwargs.get("device")
            self.register_buffer(f"{side}_codes", torch.zeros(packed, dtype=torch.uint8, device=device))
            self.register_buffer(f"{side}_scale", torch.zeros(scales, dtype=torch.int16, device=device))
            if zero_points:
                zeros = packed_bytes(scales[0] * scales[1], code_bits)
                self.register_buffer(f"{side}_zero", torch.zeros(zeros, dtype=torch.uint8, device=device))
        self.bias = nn.Parameter(torch.zeros(m, **kwargs)) if bias else None

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """B (r, n), side "in", or A (m, r) or W' (m, n), side "out", as numbers of `dtype`."""
        rows, columns = self.shapes[side]
        codes = unpack(self.get_buffer(f"{side}_codes"), rows * columns, self.code_bits).view(rows, columns)
        scale = self.get_buffer(f"{side}_scale").view(torch.float16).to(dtype)
        zero = (
            widened(self.zero(side).to(dtype), columns, self.group_size) if self.zero_points else middle(self.code_bits)
        )
        return (codes.to(dtype) - zero) * widened(scale, columns, self.group_size)

    def zero(self, side: str) -> torch.Tensor:
        """The code of zero in each group of the factor on `side`, (rows, groups); for layers with `zero_points`."""
        shape = self.get_buffer(f"{side}_scale").shape
        return unpack(self.get_buffer(f"{side}_zero"), shape.numel(), self.code_bits).view(shape)

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


# What QuantisedLinear packs: of these widths, at most eight codes fill whole bytes.
CODE_BITS = (2, 3, 4, 5, 6, 8)


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
    """How many codes of `bits` bits fill how many bytes: 8 of 3 bits fill 3, 2 of 4 one, 8 of 5 five, 4 of 6 three."""
    return lcm(bits, 8) // bits, lcm(bits, 8) // 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed codes."""
    codes, size = unit(bits)
    return ceil(count / codes) * size


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (count,) below 2^bits in (packed_bytes,) of uint8, lowest bits first; zeros fill the last unit."""
    each, size = unit(bits)
    rows = nn.functional.pad(codes.to(_word(size)), (0, -len(codes) % each)).view(-1, each)
    words = (rows << bits * torch.arange(each, device=codes.device)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(size, device=codes.device) & 255).flatten().to(torch.uint8)


def unpack(packed: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """The first `count` codes, (count,), of what `pack` made: uint8, or wider where units take several bytes."""
    each, size = unit(bits)
    words = packed.view(-1, size)
    if size > 1:
        places = 8 * torch.arange(size, dtype=_word(size), device=packed.device)
        words = (words.to(_word(size)) << places).sum(1, keepdim=True, dtype=_word(size))
    places = bits * torch.arange(each, dtype=words.dtype, device=packed.device)
    return (words >> places & (1 << bits) - 1).flatten()[:count]


def _word(size: int) -> torch.dtype:
    """The integers that hold a unit of `size` bytes."""
    return torch.int32 if size < 4 else torch.int64
