"""Find the blocks of a model and the matrices in them by structure; nothing here knows a model's name.

The blocks are the outermost nn.ModuleList that holds most parameters, in a model of several parts (a vision tower, a
language model) that of the language model. What a matrix is, families say.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from svdexp.models.matrices import Found, Matrix, found_in
from svdexp.models.portable.svdexp_base import Replacement
from svdexp.runtime.errors import UserError
from svdexp.runtime.finite import all_finite

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Formats of weights that stand for themselves; narrower ones come with scales beside them.
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Targets:
    """Which linear layers to compress: fnmatch patterns over module names; the head only when asked.

    Layers of blocks beside the language model's, such as a vision tower's, only where an included pattern fits none of
    the language model's.
    `ranks` maps patterns to ranks that no allocation may change; None does not factorise.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    lm_head: bool = False
    ranks: Mapping[str, int | None] = field(default_factory=dict)

    def match(self, name: str) -> bool:
        """Whether the layer called `name` is to be compressed."""
        return matches(name, self.include) and not matches(name, self.exclude)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the fnmatch `patterns` fits `name`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their dotted name.

    Raises:
        UserError: the model has no list of blocks with linear layers.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in _language_model(model):
        if isinstance(module, nn.ModuleList) and (any(found_in(module)) or any(_ours(module))):
            size = sum(p.numel() for p in module.parameters())
            # Strictly larger: a list of experts inside a block never beats the list of blocks around it.
            if best is None or size > best[0]:
                best = (size, name, module)
    if best is None:
        raise UserError(f"model: {type(model).__name__} has no list of blocks that hold linear layers")
    return best[1], best[2]


def _ours(module: nn.Module) -> Iterator[nn.Module]:
    """The layers in `module` that took the place of dense ones."""
    return (part for part in module.modules() if isinstance(part, Replacement))


def _language_model(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The modules, by name, of the part of `model` that reads and writes text: all, where its config has no parts."""
    modules = dict(model.named_modules())
    config: Any = getattr(model, "config", None)
    if isinstance(model, PreTrainedModel) and config.get_text_config(decoder=True) is not config:
        part = model.get_decoder()  # type: ignore[no-untyped-call]
        start = next((f"{name}." for name, module in modules.items() if name and module is part), "")
        return [(name, module) for name, module in modules.items() if name.startswith(start)]
    return modules.items()


def named_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder blocks by dotted name, in order.

    Raises:
        UserError: as `find_blocks`.
    """
    prefix, blocks = find_blocks(model)
    return {f"{prefix}.{index}": block for index, block in enumerate(blocks)}


def chosen_blocks(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The blocks in which `targets` selects, by dotted name: `named_blocks`, and those beside them that it names."""
    return named_blocks(model) | {
        f"{stack}.{index}": block
        for stack in _stacks_beside(model)
        if _asked_for(model, targets, stack)
        for index, block in enumerate(model.get_submodule(stack).children())
    }


def beside_the_blocks(model: nn.Module, layers: Iterable[Matrix]) -> str | None:
    """The first of `layers` that is in blocks beside `named_blocks`, where nothing goes block by block."""
    stacks = tuple(f"{stack}." for stack in _stacks_beside(model))
    return next((layer.name for layer in layers if layer.name.startswith(stacks)), None)


def _stacks_beside(model: nn.Module) -> list[str]:
    """The names of lists of blocks with linear layers beside `find_blocks`, outermost ones."""
    prefix, _ = find_blocks(model)
    stacks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in [prefix, *stacks])
        if not isinstance(module, nn.ModuleList) or name == prefix or inside or prefix.startswith(f"{name}."):
            continue
        if any(found_in(module, name)):
            stacks.append(name)
    return stacks


def _asked_for(model: nn.Module, targets: Targets, stack: str) -> bool:
    """Whether `targets` means layers of this list of blocks, beside those that are compressed anyway."""
    there = [found.name for found in found_in(model.get_submodule(stack), stack)]
    here = [found.name for group, block in named_blocks(model).items() for found in found_in(block, group)]
    telling = [pattern for pattern in targets.include if not any(fnmatchcase(name, pattern) for name in here)]
    return any(matches(name, telling) for name in there)


@contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[None]:
    """Within this context the blocks compute their activations again in the backward pass instead of keeping them."""
    _, blocks = find_blocks(model)
    try:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is found again


def find_matrices(model: PreTrainedModel, targets: Targets) -> list[Matrix]:
    """Every compressible layer that `targets` selects, in the order of the model's modules.

    Layers that share their weight with others are none: factors would have to be shared as well. On the meta device
    there are no weights, so they are not checked.

    Raises:
        UserError: nothing selected, a module that cannot be handled, or a non-finite weight.
    """
    if getattr(model, "peft_config", None):
        raise UserError(f"model: {type(model).__name__} carries adapters; merge them into its weights first")
    if damaged := first_not_finite(model):
        raise UserError(f"model: {damaged} holds NaN or infinity; the checkpoint is damaged")
    matrices = []
    shared = [name for names in shared_matrices(model, targets).values() for name in names]
    apart = {*shared, *(name for names in vectors(model, targets).values() for name in names)}
    refuse_unsupported(model, targets)
    for group, block in chosen_blocks(model, targets).items():
        for found in found_in(block, group):
            if targets.match(found.name) and found.name not in apart:
                matrices.append(_checked(found, group))
    if targets.lm_head:
        matrices.append(_head(model))
    if not matrices and shared:
        raise UserError(f"no layer to compress: all that targets selects share their weights: {abbreviated(shared)}")
    if not matrices:
        raise UserError(f"targets.include={list(targets.include)} with targets.exclude leaves no layer to compress")
    return matrices


def first_not_finite(model: nn.Module) -> str | None:
    """The name of a parameter that holds NaN or infinity; on the meta device none does."""
    named = ((name, x) for name, x in model.named_parameters() if x.dtype in NUMBERS and not x.is_meta)
    return next((name for name, x in named if not all_finite(x)), None)


def shared_matrices(model: nn.Module, targets: Targets) -> dict[str, list[str]]:
    """Linear layers of the blocks, selected by `targets`, whose weight is found under several names: reason → names."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    names = [
        name
        for group, block in chosen_blocks(model, targets).items()
        for name, layer, family in found_in(block, group)
        if targets.match(name) and counts[id(family.parameter(layer))] > 1
    ]
    return {"share one weight under several names": names} if names else {}


def vectors(model: nn.Module, targets: Targets) -> dict[str, list[str]]:
    """Linear layers of the blocks, selected by `targets`, of one output or input, such as gates: reason → names."""
    names = [
        found.name
        for group, block in chosen_blocks(model, targets).items()
        for found in found_in(block, group)
        if targets.match(found.name) and found.weight.dtype in NUMBERS and 1 in found.weight.shape
    ]
    return {"have a single row or column, which no factors make smaller": names} if names else {}


def other_stacks(model: nn.Module, targets: Targets) -> dict[str, list[str]]:
    """Lists of blocks with linear layers that `targets` selects, beside the one that is compressed: reason → names."""
    prefix, _ = find_blocks(model)
    stacks = [
        name
        for name in _stacks_beside(model)
        if not _asked_for(model, targets, name)
        and any(targets.match(found.name) for found in found_in(model.get_submodule(name), name))
    ]
    return {f"are beside {prefix}, the one list of blocks that is compressed": stacks} if stacks else {}


def outside(model: PreTrainedModel, targets: Targets) -> dict[str, list[str]]:
    """Linear layers in no blocks, such as a projector's, that a pattern of `targets` names alone: reason → names.

    The head, which has an option of its own, is not among them where that is set.
    """
    prefix, _ = find_blocks(model)
    lists = tuple(f"{stack}." for stack in (prefix, *_stacks_beside(model)))
    every = list(found_in(model))
    inside = [found.name for found in every if found.name.startswith(lists)]
    telling = [pattern for pattern in targets.include if not any(fnmatchcase(name, pattern) for name in inside)]
    head: Any = model.get_output_embeddings() if targets.lm_head else None  # type: ignore[no-untyped-call]
    names = [
        found.name
        for found in every
        if found.layer is not head and not found.name.startswith(lists)
        if matches(found.name, telling) and not matches(found.name, targets.exclude)
    ]
    return {"are in none of the blocks, outside which only targets.lm_head takes one": names} if names else {}


def abbreviated(names: Iterable[str]) -> str:
    """Names with their numbers left out, each once and counted where it stands for several."""
    counts = Counter(map(_any_number, names))
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())


def _any_number(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def unknown_stacks(model: nn.Module, targets: Targets) -> dict[str, list[str]]:
    """Weights of the blocks, selected by `targets`, that are matrices of no family: reason → names."""
    found = list(_stacks(model, targets))
    return {"are matrices stacked in tensors of a kind that svdexp does not compress": found} if found else {}


def refuse_unsupported(model: nn.Module, targets: Targets) -> None:
    """Raise UserError where weights that are matrices of no family are more than half of the blocks' numbers."""
    found = {name: parameter.shape for name, parameter in _stacks(model, targets).items()}
    stacked = sum(shape.numel() for shape in found.values())
    whole = sum(parameter.numel() for block in named_blocks(model).values() for parameter in block.parameters())
    if 2 * stacked > whole:
        first, shape = next(iter(found.items()))
        holders = dict.fromkeys(_any_number(name.rpartition(".")[0]) for name in found)
        patterns = ",".join(f"'{pattern}'" for pattern in [*targets.exclude, *holders])
        raise UserError(
            f"model: {first} stacks matrices in a tensor of shape {tuple(shape)}, which svdexp cannot compress; leave "
            f"{'it' if len(found) == 1 else f'all {len(found)} of its kind'} dense with targets.exclude=[{patterns}]"
        )


def _stacks(model: nn.Module, targets: Targets) -> dict[str, nn.Parameter]:
    known = {id(family.parameter(layer)) for _, layer, family in found_in(model)}
    return {
        f"{name}.{key}": parameter
        for group, block in named_blocks(model).items()
        for name, module in block.named_modules(prefix=group)
        if not isinstance(module, CONVOLUTIONS) and targets.match(name)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 3
        and sum(size > 1 for size in parameter.shape) > 1  # others are vectors
        and id(parameter) not in known
    }


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of the model holds, by name: parameters, tied ones once, and persistent buffers."""
    distinct = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in distinct}


def stored_bytes(model: nn.Module) -> int:
    """Bytes of `stored_tensors`, in the formats they are in."""
    return sum(tensor.nbytes for tensor in stored_tensors(model).values())


def _checked(found: Found, group: str) -> Matrix:
    if found.weight.ndim != 2 or found.weight.dtype not in NUMBERS:
        raise UserError(f"model: {found.name} is already quantised or packed; svdexp compresses floating-point weights")
    return found.handle(group)


def _head(model: PreTrainedModel) -> Matrix:
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = next((found for found in found_in(model) if found.layer is head), None)
    if found is None:
        raise UserError(f"targets.lm_head: {type(model).__name__} has no linear language-model head")
    embedding: Any = model.get_input_embeddings()
    if found.family.parameter(head) is embedding.weight:
        raise UserError("targets.lm_head: the head is tied to the embedding, so compressing it would store more")
    return _checked(found, found.name)
