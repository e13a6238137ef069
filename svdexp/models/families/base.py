"""What svdexp asks of a family."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Family(ABC):
    """One kind of matrix in a model: y = W x + b with W of shape (m, n).

    Such a matrix has a name and, under it, a layer: a module that runs on x (…, n) alone and gives y (…, m) whenever
    the model uses the matrix. Its hooks hear all that is to be known of the matrix, and what takes the matrix's place
    takes the layer's. Layers, dense or not, have an attribute `bias`, (m,) or None.

    A family holds nothing of a model, and its members are equal. Models may be on the meta device.
    """

    @abstractmethod
    def dense_layers(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The dense matrices that the module called `name` holds itself, not in a child: their names and layers."""

    @abstractmethod
    def layer(self, model: nn.Module, name: str) -> nn.Module:
        """The layer of the matrix called `name`: the dense one, or what `put` put in its place."""

    @abstractmethod
    def put(self, model: nn.Module, name: str, layer: nn.Module) -> None:
        """Let `layer` compute y. One that is not dense is then the module under the matrix's name.

        A layer that stood there before can be put back, and all is as it was.
        """

    @abstractmethod
    def holder(self, name: str) -> str:
        """The name of the module that decides whether the matrix called `name` is used."""

    def rivals(self, name: str) -> str | None:
        """What the matrix called `name` shares with those of which a token chooses some; None: every token goes there.

        Such matrices are experts: one of them may see few tokens, or none.
        """
        return None

    def beside(self, model: nn.Module, name: str) -> list[torch.Tensor]:
        """What the layer of the matrix called `name` computes with and holds together with its rivals'."""
        return []

    @abstractmethod
    def is_dense(self, layer: nn.Module) -> bool:
        """Whether a layer is the model's own."""

    @abstractmethod
    def parameter(self, layer: nn.Module) -> torch.Tensor:
        """What holds the W of a dense layer, and perhaps other matrices."""

    @abstractmethod
    def weight(self, layer: nn.Module) -> torch.Tensor:
        """W (m, n): of a dense layer a view of its parameter, of another one what it holds."""

    def bias(self, layer: nn.Module) -> torch.Tensor | None:
        """b (m,) of a layer, if it has one."""
        known: Any = layer
        bias: torch.Tensor | None = known.bias
        return bias

    @abstractmethod
    def filled(self, empty: nn.Module, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """The dense layer `empty`, which has no weights, with W (m, n) and `bias`."""

    @abstractmethod
    def computes(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> bool:
        """Whether a dense layer, called with `args`, made W x + b of one argument x."""
