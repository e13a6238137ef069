"""Factors in 8 and 16 bits, Dobi-SVD (arXiv 2502.02723)."""

from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_base import CodedLinear
from .svdexp_coded import lent
from .svdexp_operator import OPERATORS, ready
from .svdexp_products import FEW, FORMATS, is_open, narrow


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

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """B (r, n), side "in", or A (m, r), side "out", as numbers of `dtype`."""
        scale, rest = self.scale.view(torch.float16).to(dtype), self.rest.view(torch.float16).to(dtype)
        if side == "in":
            B = self.in_codes.to(dtype) * scale[:, None]
            return torch.cat([B, rest], dim=1) if self.in_features > self.out_features else B
        A = self.out_codes.to(dtype) * scale
        return torch.cat([A, rest]) if self.out_features > self.in_features else A

    @property
    def weight(self) -> torch.Tensor:
        """A B, (m, n), a product in float32."""
        return (self.factor("out", torch.float32) @ self.factor("in", torch.float32)).to(self.dtype)

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(r, m)."""
        return len(self.scale), self.out_features

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r)."""
        if self._few(x):
            return OPERATORS["remapped"](x, *self._kept("in"), True, None)
        return narrow(x, self._numbers("in", x), self.out_features)

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m)."""
        if self._few(latent, self.bias):
            return OPERATORS["remapped"](latent, *self._kept("out"), False, self.bias)
        return nn.functional.linear(latent, self._numbers("out", latent), self.bias)

    def _few(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
        """Whether a compiled operator multiplies x (…, n) by the codes as they lie in memory."""
        few = 0 < x.numel() <= FEW * x.shape[-1] and (bias is None or bias.dtype is x.dtype)
        return few and self._is_open(x, bias)

    def _numbers(self, side: str, x: torch.Tensor) -> torch.Tensor:
        """`factor` for a product with x, in memory that is used again where a compiled operator may make it."""
        if torch.compiler.is_compiling() or not self._is_open(x, self.bias):
            return self.factor(side, x.dtype)
        rank, inputs = len(self.scale), side == "in"
        numbers = lent((rank, self.in_features) if inputs else (self.out_features, rank), x.dtype)
        OPERATORS["renumber"](numbers, *self._kept(side), inputs)
        return numbers

    def _kept(self, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What operators are given of the factor on `side`: codes, scales, and the rest where it is the longer one."""
        if side == "in":
            return self.in_codes, self.scale, self.rest if self.in_features > self.out_features else None
        return self.out_codes, self.scale, self.rest if self.out_features > self.in_features else None

    def _is_open(self, x: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether compiled operators may do what is done with x."""
        if not is_open(x, bias) or torch.is_autocast_enabled("cpu") or not self.scale.is_cpu:
            return False
        return x.dtype in FORMATS and ready()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        return self.rebuilt(self.latent(x))

    def validate(self) -> None:
        """Check what a file may have put into the 16-bit parts.

        Raises:
            ValueError: they are not finite.
        """
        if not all(bool(part.view(torch.float16).isfinite().all()) for part in (self.scale, self.rest)):
            raise ValueError("its 16-bit parts are not finite")
