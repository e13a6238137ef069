"""Codes of a whole matrix, and factors of what they leave."""

from typing import Any, ClassVar

import torch

from .svdexp_base import Replacement, is_untouched
from .svdexp_coded import corrected
from .svdexp_factors import LowRankLinear
from .svdexp_quantised import QuantisedLinear


class ResidualLinear(Replacement):
    """y = Q x + A (B x) + b with Q in codes and W ≈ Q + A B.

    `codes` holds Q and the bias; its options are those of QuantisedLinear. `factors` holds A and B: two nn.Linear where
    `factor_bits` is 16, else codes of so many bits, in groups of `factor_group`.
    """

    kind: ClassVar[str] = "residual"
    options: ClassVar[tuple[str, ...]] = ("code_bits", "group_size", "factor_bits", "factor_group")
    switches: ClassVar[tuple[str, ...]] = ("zero_points",)

    def __init__(
        self,
        n: int,
        rank: int,
        m: int,
        bias: bool,
        *,
        code_bits: int,
        group_size: int | None,
        factor_bits: int,
        factor_group: int | None,
        zero_points: bool = False,
        **kwargs: Any,
    ):
        super().__init__()
        self.code_bits, self.group_size, self.zero_points = code_bits, group_size, zero_points
        self.factor_bits, self.factor_group = factor_bits, factor_group
        codes: dict[str, Any] = {"code_bits": code_bits, "group_size": group_size, "zero_points": zero_points}
        self.codes = QuantisedLinear(n, None, m, bias, **codes, **kwargs)
        rounded: dict[str, Any] = {"code_bits": factor_bits, "group_size": factor_group}
        self.factors = (
            LowRankLinear(n, rank, m, False, **kwargs)
            if factor_bits == WHOLE_BITS
            else QuantisedLinear(n, rank, m, False, **rounded, **kwargs)
        )

    @property
    def weight(self) -> torch.Tensor | None:
        """Q + A B, (m, n), a sum in float32; None where another library has put layers without weights in it."""
        return total(self.codes.weight, self.factors.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the codes' layer."""
        return self.codes.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        Q: Any = self._modules["codes"]
        factors: Any = self._modules["factors"]
        if is_untouched(Q, QuantisedLinear) and is_untouched(factors, QuantisedLinear):
            fast = corrected(Q.codes_of("out"), factors.codes_of("in"), factors.codes_of("out"), x, Q.bias)
            if fast is not None:
                return fast
        y: torch.Tensor = self.codes(x) + self.factors(x)
        return y

    def validate(self) -> None:
        """Check what a file may have put into the scales.

        Raises:
            ValueError: they are not finite.
        """
        self.codes.validate()
        self.factors.validate()


# Of the model's own numbers.
WHOLE_BITS = 16


def total(Q: torch.Tensor | None, correction: torch.Tensor | None) -> torch.Tensor | None:
    """Q + A B in the format of Q, a sum in float32; None where one of them is."""
    return None if Q is None or correction is None else (Q.float() + correction.float()).to(Q.dtype)
