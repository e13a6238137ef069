"""Factors of what tells an expert from the others of its stack."""

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from .svdexp_factors import LowRankLinear


class DeltaLinear(LowRankLinear):
    """y = (W̄ + A B) x with W̄ (m, n) shared by the experts of a stack (svdexp_experts.py).

    The list of their layers holds W̄, its parameter `base`, of which every layer finds it. One that is in no list has a
    tensor of its own.
    """

    kind: ClassVar[str] = "delta"
    sides: ClassVar[tuple[str, str] | None] = None

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__(n, rank, m, bias, **kwargs)
        self.__dict__["stack"] = self.__dict__["own"] = None  # neither child nor parameter

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeltaLinear":
        """One of the copied list; copied without it, one in no list with the same W̄, not a copy of all experts."""
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        if id(self.__dict__["stack"]) in memo:
            copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        else:
            copied.__dict__ = copy.deepcopy(self.__dict__ | {"stack": None, "own": None}, memo)
            copied.__dict__["own"] = None if self.base is None else self.base.detach()
        return copied

    @property
    def base(self) -> torch.Tensor | None:
        """W̄."""
        stack = self.__dict__["stack"]
        base: torch.Tensor | None = self.__dict__["own"] if stack is None else stack._parameters["base"]
        return base

    def alone(self, base: torch.Tensor) -> None:
        """Have `base` for W̄ while in no list."""
        self.__dict__["stack"], self.__dict__["own"] = None, base.detach()

    def share(self, stack: nn.Module) -> None:
        """Be one of a list that has a W̄ now: its own or, where it had none, that of this layer."""
        if "base" not in stack._parameters:
            B, base = self.rank_in.weight, self.base
            if base is None:
                base = B.new_empty(self.rank_out.out_features, self.rank_in.in_features)
            stack.register_parameter("base", nn.Parameter(base.detach(), requires_grad=B.requires_grad))
        self.__dict__["stack"], self.__dict__["own"] = stack, None

    @property
    def weight(self) -> torch.Tensor | None:
        """W̄ + A B, (m, n), a sum in float32; None where another library has put layers without weights in it."""
        base, delta = self.base, super().weight
        return None if base is None or delta is None else (base.float() + delta.float()).to(base.dtype)

    @property
    def pair_shape(self) -> None:  # type: ignore[override]  # as of any layer that is no pair
        """None: what is between A and B is not all that y is made of."""
        return

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        assert self.base is not None
        return nn.functional.linear(x, self.base) + super().forward(x)
