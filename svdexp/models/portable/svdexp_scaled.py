"""Codes of factors, or of whole matrices, whose columns were scaled before (AWQ, arXiv 2306.00978)."""

from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_coded import multiplied, route
from .svdexp_products import OPERATOR
from .svdexp_quantised import QuantisedLinear


class ScaledLinear(QuantisedLinear):
    """As QuantisedLinear, but that what codes stand for is multiplied, column by column, by numbers of each factor's.

    These, (columns,), are float16 in int16's clothes.
    """

    kind: ClassVar[str] = "scaled"

    def __init__(self, n: int, rank: int | None, m: int, bias: bool, **kwargs: Any):
        super().__init__(n, rank, m, bias, **kwargs)
        for side, (_, columns) in self.shapes.items():
            numbers = torch.zeros(columns, dtype=torch.int16, device=kwargs.get("device"))
            self.register_buffer(f"{side}_columns", numbers)

    def _product(self, side: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Of few tokens by the operator of codes, where their numbers are scaled in place of the columns."""
        W, scaled = self.codes_of(side), x * self._columns(side, x.dtype)
        if route(scaled, W, bias) == OPERATOR:
            return multiplied(W, scaled, bias, OPERATOR, self.packs, side)
        return nn.functional.linear(x, self.factor(side, x.dtype), bias)

    def _columns(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        return self.get_buffer(f"{side}_columns").view(torch.float16).to(dtype)

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """B (r, n), side "in", or A (m, r) or W' (m, n), side "out", as numbers of `dtype`."""
        return super().factor(side, dtype) * self._columns(side, dtype)

    def validate(self) -> None:
        """Check what a file may have put into the scales.

        Raises:
            ValueError: they are not finite.
        """
        super().validate()
        for side in self.shapes:
            if not bool(self.get_buffer(f"{side}_columns").view(torch.float16).isfinite().all()):
                raise ValueError("its scales are not finite")
