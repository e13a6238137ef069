"""What vLLM's transformers backend wants of a model beside its layers."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

ATTENTION = "vllm"  # what vLLM's backend calls its attention in the config of a model that it builds


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
        children.setdefault(parent, []).append(child)
    for parent, of in children.items():
        module = model.get_submodule(parent)
        module.__class__ = _variant(type(module), frozenset(of))


@cache
def _variant(kind: type[nn.Module], children: frozenset[str]) -> type[nn.Module]:
    """A class that is `kind` in all but identity, one for each set of children."""
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__})
