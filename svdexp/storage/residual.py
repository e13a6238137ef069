"""Codes and a low-rank correction: W ≈ Q + A B, Q the rounded W and A B the weighted optimum of W − Q.

The correction is whatever the method's weighting decomposes. With the inputs' second moment alone it is QERA's exact
solution (arXiv 2410.06040), which EoRA (2410.21271) and CALDERA's low-rank step (2405.18886) share; with both sides the
optimum of tr(Δᵀ G Δ C).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import final

import torch

from svdexp.models.factors import Factors, filled, low_rank_layer
from svdexp.models.portable.svdexp_residual import WHOLE_BITS, ResidualLinear
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.finite import all_finite
from svdexp.storage.base import NUMBER_BITS, Kept, Storage
from svdexp.storage.quantised import RTNStorage
from svdexp.storage.rounding import Grid, Rounded, gptq, to_nearest


class Rounding(StrEnum):
    """How Q is found."""

    nearest = "nearest"  # every entry by itself
    gptq = "gptq"  # for the inputs that the dense model has


@final
@dataclass(frozen=True)
class ResidualStorage(Storage):
    """Codes of all of W, and factors of what they leave.

    Attributes:
        code_bits, group_size, zero_points, fit: of Q, as of RTNStorage.
        rounding: how Q is found.
        factor_bits: of an entry of A and B: 16, or a width of codes, to the nearest of which they are rounded.
        factor_group: how many neighbours along the input of a factor share a 16-bit scale; None: a whole row does.
    """

    code_bits: int = 4
    group_size: int | None = 64
    zero_points: bool = False
    fit: bool = False
    rounding: Rounding = Rounding.gptq
    factor_bits: int = 8
    factor_group: int | None = None

    def __post_init__(self) -> None:
        _ = self.codes, self.factors  # which check the widths
        require(
            self.factor_bits != WHOLE_BITS or self.factor_group is None,
            f"storage.factor_group={self.factor_group} has no effect, because storage.factor_bits is {WHOLE_BITS}",
        )

    @property
    def codes(self) -> RTNStorage:
        """What Q costs."""
        return RTNStorage(self.code_bits, self.group_size, self.zero_points, self.fit)

    @property
    def factors(self) -> RTNStorage | None:
        """What A and B cost and are rounded by; None: plain numbers."""
        return None if self.factor_bits == WHOLE_BITS else RTNStorage(self.factor_bits, self.factor_group)

    @property
    def grid(self) -> Grid:
        """What entries of Q are rounded to."""
        return self.codes.grid

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs' second moment, for GPTQ."""
        return ("gram",) if self.rounding is Rounding.gptq else ()

    @property
    def rounds_factors(self) -> bool:
        """Unless they are plain."""
        return self.factors is not None

    def rounded_factors(self, factors: Factors) -> Factors:
        """To the nearest, unless they are plain."""
        return self.factors.rounded_factors(factors) if self.factors else factors

    @property
    def split(self) -> str:
        """Q, whatever the format of the factors."""
        return f"what {self.rounding} leaves on {self.grid}"

    def target(
        self, W: torch.Tensor, C: torch.Tensor | None = None, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """W − Q, and the codes of Q."""
        if kept is None:
            if self.rounding is Rounding.gptq:
                assert C is not None, "an engine gives what `needs` asks for"
                kept = kept_of(gptq(W, C, self.grid))
            else:
                kept = kept_of(to_nearest(W, self.grid))
        # those of a cache on disk are on the CPU
        return W.double() - self.grid.numbers(rounded_of(kept)).to(W.device), kept

    def bits(self, rank: int, m: int, n: int) -> int:
        """Q and both factors."""
        factors = self.factors.bits(rank, m, n) if self.factors else rank * (m + n) * NUMBER_BITS
        return self.codes.whole_bits(m, n) + factors

    def multiplied(self, rank: int, m: int, n: int) -> int:
        """All of Q, and both factors."""
        return m * n + rank * (m + n)

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> ResidualLinear:
        """A layer that holds Q + A B and `bias` with the dtype and device of `like`.

        Raises:
            UserError: a number is not finite, or too large for float16.
        """
        assert kept is not None, "there is no correction without codes"
        m, n = like.shape
        Q = self.codes.coded(rounded_of(kept), bias, like)
        correction = self.factors.layer(factors, None, like) if self.factors else low_rank_layer(factors, None, like)
        parts = {"codes": Q, "factors": correction}
        state = {f"{part}.{key}": tensor for part, held in parts.items() for key, tensor in held.state_dict().items()}
        if not all(all_finite(tensor) for tensor in state.values() if tensor.is_floating_point()):
            raise UserError(
                f"storage=residual: a correction of shape {(m, n)} at rank {factors.rank} is not finite; "
                "use storage=factors"
            )
        layer = ResidualLinear(
            *(n, factors.rank, m, bias is not None),
            code_bits=self.code_bits,
            group_size=self.group_size,
            factor_bits=self.factor_bits,
            factor_group=self.factor_group,
            zero_points=self.zero_points,
            dtype=like.dtype,
            device="meta",
        )
        return filled(layer, state, like)


def kept_of(rounded: Rounded) -> dict[str, torch.Tensor]:
    """Codes and levels by name, as a cache keeps them."""
    zero = {} if rounded.zero is None else {"zero": rounded.zero.to(torch.uint8)}
    return {"codes": rounded.codes.to(torch.uint8), "scale": rounded.scale} | zero


def rounded_of(kept: Kept) -> Rounded:
    """The reverse."""
    return Rounded(kept["codes"].int(), kept["scale"], kept["zero"].int() if "zero" in kept else None)
