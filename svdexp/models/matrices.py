"""A model as svdexp sees it: blocks of matrices. What a matrix is in a model is its family's business."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from svdexp.models.families import FAMILIES, LINEAR, Family

# Name of a matrix → rank; None does not factorise it: it stays dense, or whole in a form of the storage.
Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Matrix:
    """The handle of one matrix, y = W x + b with W of shape (m, n), in any model that has it.

    It holds nothing of a model: what asks for a tensor or changes one says in which model, be it on the meta device.

    Attributes:
        name: of the matrix, and of the layer that computes y.
        group: the name of the block it belongs to, or its own name outside the blocks.
        family: what it is in a model.
    """

    name: str
    group: str
    m: int
    n: int
    family: Family = LINEAR

    def layer(self, model: nn.Module) -> nn.Module:
        """What computes y, to be hooked or kept: the dense layer, or what `put` put in its place."""
        return self.family.layer(model, self.name)

    def put(self, model: nn.Module, layer: nn.Module) -> None:
        """Let `layer` compute y from now on."""
        self.family.put(model, self.name, layer)

    def is_dense(self, model: nn.Module) -> bool:
        """Whether its layer is the model's own."""
        return self.family.is_dense(self.layer(model))

    def weight(self, model: nn.Module) -> torch.Tensor:
        """W: of the dense layer a view, of another one what it holds."""
        return self.family.weight(self.layer(model))

    def bias(self, model: nn.Module) -> torch.Tensor | None:
        """b (m,), if there is one."""
        return self.family.bias(self.layer(model))

    @property
    def holder(self) -> str:
        """The name of the module that decides whether the matrix is used: where it runs, the matrix should."""
        return self.family.holder(self.name)

    @property
    def rivals(self) -> str | None:
        """What it shares with the matrices of other experts; None where every token goes through it."""
        return self.family.rivals(self.name)

    def beside(self, model: nn.Module) -> list[torch.Tensor]:
        """What its layer computes with and holds together with its rivals'."""
        return self.family.beside(model, self.name)

    def computes(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> bool:
        """Whether its dense layer, called with `args`, made W x + b of one argument x."""
        return self.family.computes(self.layer(model), args, output)

    def filled(self, skeleton: nn.Module, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """The dense layer of W and `bias`, made of that of `skeleton`, a model without weights."""
        return self.family.filled(self.layer(skeleton), W, bias)


class Found(NamedTuple):
    """A dense matrix before anything is asked of its weight, which may be packed."""

    name: str
    layer: nn.Module
    family: Family

    @property
    def weight(self) -> torch.Tensor:
        """W, (m, n) unless it is packed."""
        return self.family.weight(self.layer)

    def handle(self, group: str) -> Matrix:
        """Its handle, in the block called `group`."""
        m, n = self.weight.shape
        return Matrix(self.name, group, m, n, self.family)


def found_in(module: nn.Module, prefix: str = "") -> Iterator[Found]:
    """Every dense matrix in the module called `prefix`, in the order of its modules."""
    for name, part in module.named_modules(prefix=prefix):
        for family in FAMILIES:
            yield from (Found(*member, family) for member in family.dense_layers(name, part))


def matrices_in(module: nn.Module, prefix: str = "") -> list[Matrix]:
    """The handles of `found_in` but for packed weights, each matrix a group of its own."""
    return [found.handle(found.name) for found in found_in(module, prefix) if found.weight.ndim == 2]


def named(model: nn.Module, names: Iterable[str]) -> list[Matrix]:
    """The dense matrices of `model` that are called by `names`."""
    found = {matrix.name: matrix for matrix in matrices_in(model)}
    return [found[name] for name in names]


def stacks(matrices: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    """The experts' matrices among `matrices`, by what they share."""
    found: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.rivals is not None:
            found.setdefault(matrix.rivals, []).append(matrix)
    return found


def layers_of(model: nn.Module, matrices: Iterable[Matrix]) -> dict[str, nn.Module]:
    """The layers of `matrices`, by name."""
    return {matrix.name: matrix.layer(model) for matrix in matrices}
