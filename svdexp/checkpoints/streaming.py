"""Models whose blocks stay in their files until it is their turn (models/residency.py).

Which tensor of a file is which of the model, renamed or made of several, is transformers' to say: it loads the model
with its blocks "on disk", and what it then knows of their places is taken over.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, remove_hook_from_module
from accelerate.utils import OffloadedWeightsLoader
from transformers import PreTrainedModel

from svdexp.models.residency import Place, stream
from svdexp.models.structure import find_blocks, named_blocks
from svdexp.runtime.words import quiet

# What accelerate leaves on a model that it dispatched, beside its hooks.
TRACES = ("hf_device_map", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")


def streamed(
    load: Callable[..., Any],
    how: Mapping[str, Any],
    skeleton: PreTrainedModel,
    device: torch.device,
    folder: Path,
    files: Mapping[str, Path],
    check: Callable[[dict[str, Any]], None],
) -> PreTrainedModel:
    """What `load`, a from_pretrained, makes of `how`, its arguments, streamed.

    Args:
        load: the function.
        how: by keyword.
        skeleton: the dense model without weights.
        device: where blocks go for their turn, and all else stays.
        folder: where tensors are put that no file holds as they are; it must live as long as the model.
        files: which file holds which tensor.
        check: is given the loading's report before anything else.

    Raises:
        UserError: as `stream`.
    """
    places = device_map(skeleton, device)
    model: PreTrainedModel
    # which says of every such model that some of it is on the meta device
    with quiet("accelerate.big_modeling", logging.ERROR):
        model, report = load(device_map=places, offload_folder=folder, output_loading_info=True, **how)
    check(report)
    found = offloaded(model)
    remove_hook_from_module(model, recurse=True)
    for part in model.modules():
        forget_own_forward(part)
    for trace in TRACES:
        vars(model).pop(trace, None)
    moved = {name for name, at in found.items() if at.file.parent == folder}
    known = {name: at if name in moved else Place(files[at.name], at.name) for name, at in found.items()}
    model.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
    stream(model, named_blocks(skeleton), known, folder)
    return model


def forget_own_forward(module: torch.nn.Module) -> None:
    """Take from a module the forward of its class, which a hook that was removed leaves on it.

    Layers that have one of their own multiply by the reference: slower, and rounded otherwise than those in memory.
    """
    own: Any = vars(module).get("forward")
    if getattr(own, "__func__", None) is type(module).forward:
        del module.forward


def device_map(model: PreTrainedModel, device: torch.device) -> dict[str, str]:
    """The blocks on disk, and every other part of the model on the device, each by its name."""
    prefix, _ = find_blocks(model)
    places: dict[str, str] = {prefix: "disk"}
    around, at = model, ""
    for step in prefix.split("."):
        parts = [name for name, _ in around.named_children() if name != step]
        parts += [name for name, _ in around.named_parameters(recurse=False)]
        parts += [name for name, _ in around.named_buffers(recurse=False)]
        places |= {f"{at}{part}": str(device) for part in parts}  # safetensors takes no torch.device
        around, at = getattr(around, step), f"{at}{step}."
    return places


def offloaded(model: PreTrainedModel) -> dict[str, Place]:
    """Where accelerate's hooks would read the tensors of a model that was loaded in part "on disk", by name."""
    for module in model.modules():
        for hook in _hooks(vars(module).get("_hf_hook")):
            loader = getattr(hook.weights_map, "dataset", hook.weights_map)
            if isinstance(loader, OffloadedWeightsLoader):
                index = loader.index
                return {name: Place(Path(at["safetensors_file"]), at["weight_name"]) for name, at in index.items()}
    return {}


def _hooks(hook: ModelHook | None) -> Iterator[AlignDevicesHook]:
    if isinstance(hook, SequentialHook):
        for part in hook.hooks:
            yield from _hooks(part)
    elif isinstance(hook, AlignDevicesHook):
        yield hook
