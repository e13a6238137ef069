"""Factors, or whole matrices, in packed codes."""

from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_base import CodedLinear
from .svdexp_bits import CODE_BITS, groups, middle, packed_bytes, unpack, widened
from .svdexp_coded import Codes, multiplied, route
from .svdexp_products import REFERENCE


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
        self.packs: dict[str, Any] = {}  # codes in another order, where a product wants them so; never saved

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed again when it is wanted."""
        return self.__dict__ | {"packs": {}}

    def codes_of(self, side: str) -> Codes:
        """What is kept of the factor on `side`."""
        held: Any = self._buffers  # every product asks: a step of a small model is mostly what Python does
        codes, scale, zero = held[f"{side}_codes"], held[f"{side}_scale"], held.get(f"{side}_zero")
        return Codes(codes, scale, zero, self.code_bits, self.group_size, self.shapes[side][1])

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

    @property
    def pair_shape(self) -> tuple[int, int] | None:
        """(r, m) of factors; a whole matrix has none."""
        return (self.shapes["in"][0], self.shapes["out"][0]) if "in" in self.shapes else None

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r)."""
        return self._product("in", x)

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m)."""
        return self._product("out", latent, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        return self.rebuilt(self.latent(x) if "in" in self.shapes else x)

    def _product(self, side: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        W = self.codes_of(side)
        how = route(x, W, bias)
        if how == REFERENCE:
            return nn.functional.linear(x, self.factor(side, x.dtype), bias)
        return multiplied(W, x, bias, how, self.packs, side)

    def validate(self) -> None:
        """Check what a file may have put into the scales.

        Raises:
            ValueError: they are not finite.
        """
        for side in self.shapes:
            if not bool(self.get_buffer(f"{side}_scale").view(torch.float16).isfinite().all()):
                raise ValueError("its scales are not finite")
