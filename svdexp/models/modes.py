"""Dropout, gradients and torch's own modes, which a caller may have left on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def as_loaded(
    work: Callable[Concatenate[PreTrainedModel, P], ResultT],
) -> Callable[Concatenate[PreTrainedModel, P], ResultT]:
    """Let `work` find its model as svdexp loads one, whoever made it and whatever surrounds the call."""

    @wraps(work)
    def wrapped(model: PreTrainedModel, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        with at_rest(model), torch.inference_mode(False), torch.enable_grad():
            return work(model, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # takes it by name, too


def recordable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of one that was made in inference mode, which no backward pass could keep."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def at_rest(model: PreTrainedModel) -> Iterator[None]:
    """Within this context `model` has no dropout, and no parameter requires a gradient.

    Afterwards every module and parameter has its flags back; what has taken a layer's place has that layer's.
    """
    training = {name: module.training for name, module in model.named_modules()}
    parameters = model.named_parameters(remove_duplicate=False)  # tied ones under both of their names
    trainable = {name for name, parameter in parameters if parameter.requires_grad}
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for name, module in model.named_modules():
            place, inside = name, name
            while place not in training:
                place, inside = place.rpartition(".")[0], place
            module.training = training[place]
            # what is new has the flag of the layer's weight, or of the stack of experts, that was there
            before = {f"{place}.weight", inside}
            for key, parameter in module.named_parameters(name, recurse=False):
                parameter.requires_grad_(bool((before if place != name else {key}) & trainable))
