"""What vLLM's transformers backend wants of a model beside its layers."""

from collections.abc import Iterable
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
        if parent:
            children.setdefault(parent, []).append(child)
    variants: dict[tuple[type[nn.Module], frozenset[str]], type[nn.Module]] = {}
    for parent, of in children.items():
        module = model.get_submodule(parent)
        kind = type(module)
        same = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        module.__class__ = variants.setdefault((kind, frozenset(of)), type(kind.__name__, (kind,), same))
