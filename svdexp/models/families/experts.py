"""Experts that transformers stacks in 3-D parameters: every expert's matrices are matrices of their own.

While all matrices of a stack are dense it stays what it is, and so does the model; their layers, views of it, run only
where somebody listens to one. Once one of them is replaced, the stack gives way to a list of layers
(portable/svdexp_experts.py), and comes back when all are dense again. Biases belong to the module, not to the matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from svdexp.models.families.linear import Linear
from svdexp.models.portable.svdexp_experts import (
    ExpertList,
    become,
    dense_class,
    heard,
    join,
    layout_of,
    matrix_of,
    one_by_one,
    run,
    split,
)


class Slice(nn.Linear):
    """The dense layer of one matrix: a view of its stack, or, where there is none, with a weight of its own."""

    def __init__(self, m: int, n: int, weight: torch.Tensor | None = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = n, m
        self.register_parameter("bias", None)
        self.__dict__["place"] = None
        if weight is not None:
            self.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)

    def belong(self, experts: nn.Module, key: str, index: int) -> None:
        """Be a view of the matrix `index` of a stack."""
        self._parameters.pop("weight", None)
        self.__dict__["place"] = (experts, key, index)  # not a child

    def leave(self) -> None:
        """Have a copy of the weight, whatever becomes of the stack."""
        weight, trained = self.weight.detach().clone(memory_format=torch.contiguous_format), self.stack.requires_grad
        self.__dict__["place"] = None
        self.weight = nn.Parameter(weight, requires_grad=trained)

    @property
    def stack(self) -> torch.Tensor:
        """The parameter that holds the weight, and perhaps others."""
        if self.place is None:
            return self.weight
        experts, key, _ = self.place
        stack: torch.Tensor = experts._parameters[key]
        return stack

    def __getattr__(self, name: str) -> Any:
        """The weight of a view is found in its stack."""
        if name == "weight" and self.__dict__.get("place") is not None:
            return matrix_of(*self.place)
        return super().__getattr__(name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """The weight, of a view as well."""
        if self.place is None:
            yield from super().named_parameters(*args, **kwargs)
        else:
            yield "weight", self.weight


@cache
def listening(dense: Any) -> type[nn.Module]:
    """The subclass of a class of experts that runs its slices where somebody listens to one."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        stacks: dict[str, list[Slice]] = self.__dict__["slices"]
        if any(map(heard, stacks.values())):
            return run(self, [partial(one_by_one, parts) for parts in stacks.values()], *args, **kwargs)
        return dense.forward(self, *args, **kwargs)

    members = {"forward": forward, "_dense_class": dense, "__module__": __name__, "__doc__": listening.__doc__}
    return type(dense.__name__, (dense,), members)


@dataclass(frozen=True)
class Experts(Linear):
    """Matrices are called after their stack and their number: `…experts.down_proj.2`."""

    def dense_layers(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The slices of the stacks; what is in a list already is a module by itself."""
        layout = layout_of(module)
        for key in layout.stacks if layout else ():
            if key in module._parameters:
                slices = _slices(module, key)
                yield from ((f"{name}.{key}.{index}", part) for index, part in enumerate(slices))

    def layer(self, model: nn.Module, name: str) -> nn.Module:
        """A slice, or a member of the list."""
        experts, key, index = _place(model, name)
        layers: Any = experts._modules.get(key) or _slices(experts, key)
        found: nn.Module = layers[index]
        return found

    def put(self, model: nn.Module, name: str, layer: nn.Module) -> None:
        """Split the stack, unless `layer` is dense, and join it when all layers are."""
        experts, key, index = _place(model, name)
        if key in experts._parameters:
            slices = _slices(experts, key)
            if layer is slices[index]:
                return
            for part in slices:
                part.leave()
            del experts.__dict__["slices"][key]
            split(experts, key, slices)
        layers: Any = experts._modules[key]
        layers[index] = layer
        if all(isinstance(part, nn.Linear) for part in layers):
            _join(experts, key, list(layers))

    def holder(self, name: str) -> str:
        """The experts' module."""
        return name.rsplit(".", 2)[0]

    def rivals(self, name: str) -> str | None:
        """The stack."""
        return name.rpartition(".")[0]

    def beside(self, model: nn.Module, name: str) -> list[torch.Tensor]:
        """What the list has."""
        experts, key, _ = _place(model, name)
        layers = experts._modules.get(key)
        return [] if layers is None else list(layers.parameters(recurse=False))

    def parameter(self, layer: nn.Module) -> torch.Tensor:
        """The stack, where there is one."""
        return layer.stack if isinstance(layer, Slice) else super().parameter(layer)

    def weight(self, layer: nn.Module) -> torch.Tensor:
        """The matrix alone."""
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def filled(self, empty: nn.Module, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """A layer with `W` of its own; a matrix has no bias."""
        m, n = W.shape
        return Slice(m, n, W.detach())


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str, int]:
    holder, key, index = name.rsplit(".", 2)
    return model.get_submodule(holder), key, int(index)


def _slices(experts: nn.Module, key: str) -> list[Slice]:
    """The layers of a stack, made once."""
    known = experts.__dict__.get("slices", {})
    if key not in known:
        layout, stack = layout_of(experts), experts._parameters[key]
        assert layout is not None and stack is not None  # noqa: PT018
        count, m, n = stack.mT.shape if layout.transposed else stack.shape
        _cut(experts, key, [Slice(m, n) for _ in range(count)])
    slices: list[Slice] = experts.__dict__["slices"][key]
    return slices


def _cut(experts: nn.Module, key: str, slices: list[Slice]) -> None:
    """Let these be the layers of a stack."""
    for index, part in enumerate(slices):
        part.belong(experts, key, index)
    found = experts.__dict__.get("slices", {}) | {key: slices}
    layout = layout_of(experts)
    assert layout is not None
    experts.__dict__["slices"] = {name: found[name] for name in layout.stacks if name in found}
    if not any(isinstance(part, ExpertList) for part in experts.children()) and len(found) == len(layout.stacks):
        dense: Any = dense_class(type(experts))
        become(experts, listening(dense))


def _join(experts: nn.Module, key: str, layers: list[nn.Linear]) -> None:
    layout = layout_of(experts)
    assert layout is not None
    stack = torch.stack([layer.weight.detach() for layer in layers])
    stack = stack.mT.contiguous() if layout.transposed else stack
    join(experts, key, nn.Parameter(stack, requires_grad=layers[0].weight.requires_grad))
    _cut(experts, key, [x if isinstance(x, Slice) else Slice(x.out_features, x.in_features) for x in layers])
