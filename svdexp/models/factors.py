"""Factors, and the layers that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from svdexp.models.portable.svdexp_factors import LowRankLinear

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


def low_rank_layer(factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> LowRankLinear:
    """A layer that holds `factors` and `bias` with the dtype and device of `like`."""
    m, n = factors.A.shape[0], factors.B.shape[1]
    layer = LowRankLinear(n, factors.rank, m, bias is not None, dtype=like.dtype, device="meta")
    state = {"rank_in.weight": factors.B, "rank_out.weight": factors.A}
    if bias is not None:
        state["rank_out.bias"] = bias.detach()
    return filled(layer, state, like)


def factors_of(layer: LowRankLinear) -> Factors:
    """A and B of a layer, without history."""
    return Factors(layer.rank_out.weight.detach(), layer.rank_in.weight.detach())


def filled(layer: LayerT, state: Mapping[str, torch.Tensor], like: torch.Tensor) -> LayerT:
    """`layer`, made on the meta device, with the tensors of `state`: on the device of `like`, numbers in its format."""

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()

    layer.load_state_dict({key: placed(tensor) for key, tensor in state.items()}, assign=True)
    return layer.requires_grad_(like.requires_grad)
