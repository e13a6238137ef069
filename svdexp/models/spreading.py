"""device=balanced: a model that one GPU cannot hold, its blocks dealt out over all of them by accelerate."""

from collections.abc import Callable

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import PreTrainedModel

from svdexp.runtime.errors import UserError

BALANCED = "balanced"

ELSEWHERE = {"cpu", "disk"}  # where accelerate puts what the GPUs have no room for


def settled(load: Callable[[torch.device], PreTrainedModel], device: torch.device, spread: bool) -> PreTrainedModel:
    """What `load` gives on `device`; or, to be spread, what it gives on the CPU, spread over all GPUs.

    Raises:
        UserError: as `load`, and if the GPUs together are too small.
    """
    return spread_out(load(torch.device("cpu"))) if spread else load(device)


def is_spread(model: PreTrainedModel) -> bool:
    """Whether the model's blocks stand on several devices."""
    return hasattr(model, "hf_device_map")


def spread_out(model: PreTrainedModel) -> PreTrainedModel:
    """Every block whole on one GPU, as many on each; activations follow them from one to the next.

    Raises:
        UserError: the GPUs together are too small.
    """
    places = device_map(model)
    if ELSEWHERE & {str(place) for place in places.values()}:
        raise UserError(f"device={BALANCED}: the {torch.cuda.device_count()} GPUs here cannot hold the model together")
    dispatch_model(model, places, force_hooks=True)
    return model


def device_map(model: PreTrainedModel) -> dict[str, int | str | torch.device]:
    """Where each part goes."""
    whole = list(model._no_split_modules or [])
    room = get_balanced_memory(model, no_split_module_classes=whole)
    found: dict[str, int | str | torch.device] = infer_auto_device_map(
        model, max_memory=room, no_split_module_classes=whole
    )
    return found
