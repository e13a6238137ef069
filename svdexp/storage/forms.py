"""What a matrix may be, each in one word, and the storage in which every matrix is one of several such forms.

dense                   16 bits an entry
gptq4-g64, rtn8-row     codes of the whole matrix: how they are chosen, their bits, how many share a scale
gptq2-g64-zp            with zero points
gptq2-g64-fit           with fitted steps; or -zp-fit
factors, pivot          factors of plain numbers, at any rank
factors8-g64            factors in codes
gptq3-g64+factors8-row  codes of the whole matrix, and factors of what they leave; or +factors, in plain numbers
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch

from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_residual import WHOLE_BITS
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import UserError, require, require_positive
from svdexp.storage.base import Form, Kept, Storage
from svdexp.storage.factors import FactorStorage
from svdexp.storage.pivot import PivotStorage
from svdexp.storage.quantised import GPTQStorage, RTNStorage
from svdexp.storage.residual import ResidualStorage, Rounding

PLAIN: dict[str, Form] = {
    "dense": Form(FactorStorage(), ranked=False),
    "factors": Form(FactorStorage(), ranked=True),
    "pivot": Form(PivotStorage(), ranked=True),
}
GROUP = r"-(row|g\d+)"
CODES = re.compile(rf"(rtn|gptq)(\d+){GROUP}(-zp)?(-fit)?")
FACTORS = re.compile(rf"factors(\d+){GROUP}")


@final
@dataclass(frozen=True)
class FormStorage(Storage):
    """Every matrix in the one of `forms` that the allocation chooses for it.

    Attributes:
        forms: words as above.
        samples: calibration windows that GPTQ uses at the end, at most.
    """

    forms: list[str] = field(default_factory=lambda: ["dense"])
    samples: int = 128
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(bool(self.forms), "storage.forms must name a form, such as gptq4-g64")
        require_positive("storage.samples", self.samples)
        _ = self.menu  # which reads the words

    @property
    def menu(self) -> dict[str, Form]:
        """The forms by their words."""
        return {word: form_of(word, self.samples) for word in self.forms}

    @property
    def needs(self) -> tuple[str, ...]:
        """What its forms need."""
        return tuple(dict.fromkeys(need for form in self.menu.values() for need in form.storage.needs))

    def bits(self, rank: int, m: int, n: int) -> int:
        """Of the cheapest form that has ranks; where none has, of the cheapest whole one."""
        found = [form.storage.bits(rank, m, n) for form in self.menu.values() if form.ranked]
        return min(found, default=self.whole_bits(m, n))

    def whole_bits(self, m: int, n: int) -> int:
        """Of the cheapest form without ranks; where there is none, of the dense matrix."""
        found = [form.storage.whole_bits(m, n) for form in self.menu.values() if not form.ranked]
        return min(found, default=super().whole_bits(m, n))

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> LowRankLinear:
        """The plain factors, for allocations that try layers out; those of a chosen form are its own storage's."""
        return low_rank_layer(factors, bias, like)

    def cost(self, workload: Workload) -> Work:
        """That of GPTQ, if it rounds a form."""
        found = [form.storage for form in self.menu.values() if form.storage.waits]
        return found[0].cost(workload) if found else Work()


def form_of(word: str, samples: int) -> Form:
    """The form that `word` names; GPTQ then uses `samples` windows.

    Raises:
        UserError: it names none.
    """
    if word in PLAIN:
        return PLAIN[word]
    if found := CODES.fullmatch(word):
        grid = int(found[2]), _size(found[3]), bool(found[4]), bool(found[5])
        return Form(GPTQStorage(*grid, samples) if found[1] == "gptq" else RTNStorage(*grid), ranked=False)
    if found := FACTORS.fullmatch(word):
        return Form(RTNStorage(int(found[1]), _size(found[2])), ranked=True)
    base, plus, factors = word.partition("+")
    codes_found, factors_found = CODES.fullmatch(base), FACTORS.fullmatch(factors)
    if plus and codes_found and (factors_found or factors == "factors"):
        storage = ResidualStorage(
            int(codes_found[2]),
            _size(codes_found[3]),
            bool(codes_found[4]),
            bool(codes_found[5]),
            Rounding.gptq if codes_found[1] == "gptq" else Rounding.nearest,
            int(factors_found[1]) if factors_found else WHOLE_BITS,
            _size(factors_found[2]) if factors_found else None,
        )
        return Form(storage, ranked=True)
    raise UserError(
        f"storage.forms: {word!r} is no form; forms are dense, factors, pivot, codes such as gptq4-g64, rtn8-row and "
        "gptq2-g32-zp-fit, factors in codes such as factors8-g64, and both, such as gptq3-g64+factors8-row"
    )


def _size(group: str) -> int | None:
    return None if group == "row" else int(group.removeprefix("g"))
