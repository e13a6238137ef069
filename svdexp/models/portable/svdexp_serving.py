"""What vLLM's transformers backend wants of a model beside its layers."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

ATTENTION = "vllm"  # what vLLM's backend calls its attention in the config of a model that it builds
PLAIN = "factors"  # the format of layers that are joined


def is_served(config: Any) -> bool:
    """Whether vLLM builds a model of this config."""
    return getattr(config.get_text_config(), "_attn_implementation", None) == ATTENTION


def tell_apart(model: nn.Module, names: Iterable[str]) -> None:
    """Give parents of the layers `names` classes of their own, by which of their children these are.

    vLLM looks at one module of a class, and joins in all modules of that class the dense layers that it found in it.
    """
    children: dict[str, list[str]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        if parent:
            children.setdefault(parent, []).append(child)
    variants: dict[tuple[type[nn.Module], frozenset[str]], type[nn.Module]] = {}
    for parent, of in children.items():
        module = model.get_submodule(parent)
        kind = type(module)
        same = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        module.__class__ = variants.setdefault((kind, frozenset(of)), type(kind.__name__, (kind,), same))


class Joint:
    """The first factors of layers that are given the same input, as one product, which the first of them has.

    Whichever of them runs first computes for all, and the others take their parts. What is given another tensor
    computes anew.
    """

    def __init__(self, layers: list[Any]):
        self.layers = layers
        self.sizes = [layer.rank_in.out_features for layer in layers]
        first = layers[0].rank_in
        how = {"device": first.weight.device, "dtype": first.weight.dtype}
        layers[0].rank_in = nn.Linear(first.in_features, sum(self.sizes), bias=False, **how)
        for place, layer in enumerate(layers):
            layer.__class__ = joint(type(layer))  # type: ignore[arg-type]  # mypy would not hash a class of modules
            layer.joint, layer.place = self, place
            if place:
                del layer.rank_in
        self.given: torch.Tensor | None = None
        self.parts: Any = None
        self.waiting: set[int] = set()

    def part(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """B x of the layer at `place`, (…, n) → (…, r)."""
        if self.given is not x:
            self.parts = self.layers[0].rank_in(x).split(self.sizes, -1)
            self.given, self.waiting = x, set(range(len(self.sizes)))
        found: torch.Tensor = self.parts[place]
        self.waiting.discard(place)
        if not self.waiting:
            self.given = self.parts = None
        return found

    def load(self, place: int, B: torch.Tensor) -> None:
        """Put a first factor (r, n) into the product."""
        start = sum(self.sizes[:place])
        self.layers[0].rank_in.weight.data[start : start + self.sizes[place]].copy_(B)


class Part:
    """What a layer of plain factors does otherwise when its first one is part of a joint product."""

    joint: Joint
    place: int

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r)."""
        return self.joint.part(self.place, x)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.rank_out(self.latent(x))
        return y

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take what a file has of this layer, as vLLM asks modules to; the names of the parameters that it filled."""
        filled = set()
        for name, tensor in weights:
            if name == "rank_in.weight":
                self.joint.load(self.place, tensor)
                filled |= {name} if self.place == 0 else set()
            else:
                parameter: Any = self.get_parameter(name)
                parameter.weight_loader(parameter, tensor)
                filled.add(name)
        return filled


@cache
def joint(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of layers of `kind`, plain factors, that are part of a joint product."""
    return type(f"Joint{kind.__name__}", (Part, kind), {"__module__": kind.__module__, "__doc__": Part.__doc__})


def join(model: nn.Module, groups: Iterable[list[str]]) -> None:
    """Let the plain factors in each of `groups`, names of layers, multiply their input together."""
    modules = dict(model.named_modules())
    for names in groups:
        layers = [modules[name] for name in names]
        if all(getattr(layer, "kind", None) == PLAIN for layer in layers):
            Joint(layers)
