"""nn.Linear, and GPT-2's Conv1D, a linear layer with a transposed weight. A fused q/k/v projection is one matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from svdexp.models.families.base import Family

# Forward passes that are W x + b; a subclass with another is compared with it.
PLAIN = (nn.Linear.forward, Conv1D.forward)
# Rounding of a product that was computed in another order, in units of the largest output.
TOLERANCE = 32


@dataclass(frozen=True)
class Linear(Family):
    """A module is a matrix: layer and matrix have one name."""

    def dense_layers(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The module's own."""
        if self.is_dense(module):
            yield name, module

    def layer(self, model: nn.Module, name: str) -> nn.Module:
        """The submodule."""
        return model.get_submodule(name)

    def put(self, model: nn.Module, name: str, layer: nn.Module) -> None:
        """Make `layer` the submodule."""
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)

    def holder(self, name: str) -> str:
        """The module that it is a child of."""
        return name.rpartition(".")[0]

    def is_dense(self, layer: nn.Module) -> bool:
        """Told by the class; those of svdexp are of neither."""
        return isinstance(layer, nn.Linear | Conv1D)

    def parameter(self, layer: nn.Module) -> torch.Tensor:
        """The weight."""
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def weight(self, layer: nn.Module) -> torch.Tensor:
        """(out, in), as nn.Linear has it."""
        weight = self.parameter(layer)
        return weight.T if isinstance(layer, Conv1D) else weight

    def filled(self, empty: nn.Module, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """Its parameters are `W`, or a transposed copy, and `bias`."""
        state = {"weight": W.T.contiguous() if isinstance(empty, Conv1D) else W}
        empty.load_state_dict(state | ({} if bias is None else {"bias": bias.detach()}), assign=True)
        return empty

    @torch.no_grad()
    def computes(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> bool:
        """By the class's own forward pass, or by a comparison up to rounding."""
        if len(args) != 1 or not isinstance(args[0], torch.Tensor) or not isinstance(output, torch.Tensor):
            return False
        if type(layer).forward in PLAIN:
            return True
        bias: Any = layer.bias
        expected = nn.functional.linear(args[0], self.weight(layer), bias)
        if expected.shape != output.shape:
            return False
        largest = TOLERANCE * torch.finfo(output.dtype).eps * expected.abs().max() if output.numel() else 0.0
        return bool(((expected - output).abs() <= largest).all())


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer keeps W (m, n) as (n, m)."""
    return isinstance(layer, Conv1D)
