"""The low-rank layer: y = A (B x) + b as two plain linear layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

LayerT = TypeVar("LayerT", bound=nn.Module)


@dataclass(frozen=True)
class Factors:
    """W ≈ A B with A of shape (m, r) and B of shape (r, n)."""

    A: torch.Tensor
    B: torch.Tensor

    @property
    def rank(self) -> int:
        """r, the inner dimension."""
        return self.B.shape[0]


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

    @classmethod
    def from_factors(cls, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> "LowRankLinear":
        """A layer that holds `factors` and `bias` with the dtype and device of `like`."""
        m, n = factors.A.shape[0], factors.B.shape[1]
        layer = cls(n, factors.rank, m, bias is not None, dtype=like.dtype, device="meta")
        state = {"rank_in.weight": factors.B, "rank_out.weight": factors.A}
        if bias is not None:
            state["rank_out.bias"] = bias.detach()
        return filled(layer, state, like)

    @property
    def factors(self) -> Factors:
        """A and B, without history."""
        return Factors(self.rank_out.weight.detach(), self.rank_in.weight.detach())

    @property
    def weight(self) -> torch.Tensor:
        """A B, (m, n): some architectures look at or initialise `layer.weight` of their projections by name."""
        return self.rank_out.weight @ self.rank_in.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.rank_out(self.rank_in(x))
        return y


def filled(layer: LayerT, state: Mapping[str, torch.Tensor], like: torch.Tensor) -> LayerT:
    """`layer`, made on the meta device, with the tensors of `state`: on the device of `like`, numbers in its format."""

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()

    layer.load_state_dict({key: placed(tensor) for key, tensor in state.items()}, assign=True)
    return layer.requires_grad_(like.requires_grad)
