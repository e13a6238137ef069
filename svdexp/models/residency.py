"""Where the weights of a model are: all on its device, or, streamed, those of one block at a time.

The blocks of a streamed model have no weights but for their turn, within `at_hand`; then these are read from
safetensors files, which the operating system maps into memory. What is not in a block is always there. A model that
nobody made a streamed one is whole, and everything here leaves it as it is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.hooks import submodules
from svdexp.models.prefetch import Ahead
from svdexp.models.structure import NUMBERS, named_blocks, stored_tensors
from svdexp.runtime.clock import return_freed
from svdexp.runtime.disk import whole_file
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.finite import all_finite

# The attribute of a streamed model that holds its residency.
KEPT_AS = "svdexp_residency"


@dataclass(frozen=True)
class Place:
    """Where a tensor waits: a safetensors file, and its name there."""

    file: Path
    name: str

    def shape(self) -> tuple[int, ...]:
        """Its shape, from the file's header."""
        with safe_open(self.file, "pt") as file:
            return tuple(file.get_slice(self.name).get_shape())

    def read(self) -> torch.Tensor:
        """The tensor, in the file's format, mapped into memory."""
        with safe_open(self.file, "pt") as file:
            found: torch.Tensor = file.get_tensor(self.name)
            return found


class Residency:
    """Of a streamed model: where the tensors of its blocks wait, and which blocks are at hand.

    Attributes:
        folder: where blocks that were changed are put.
        places: by the names of the tensors in the model.
        blocks: the names of the blocks, in order.
        ahead: reads the next block while one computes, which then both are in memory; None: each is read in its turn,
            which on a CPU takes no longer, as files are mapped.
    """

    def __init__(self, blocks: Iterable[str], places: Mapping[str, Place], folder: Path, ahead: Ahead | None = None):
        self.folder, self.places, self.blocks = folder, dict(places), tuple(blocks)
        self.uses: Counter[str] = Counter()
        self.ahead = ahead

    def fetch(self, model: PreTrainedModel, group: str) -> None:
        """Bring the weights of a block to the model's device, in the format that the model has them in."""
        ready = self.ahead.take(group) if self.ahead else None
        for name, tensor in _stored(model, group).items():
            if tensor.is_meta:
                found = ready[name] if ready else self.places[name].read().to(model.device, tensor.dtype)
                put_tensor(model, name, found)

    def look_ahead(self, model: PreTrainedModel, group: str) -> None:
        """Begin to read a block that is not at hand and will be next, if any is read ahead."""
        if self.ahead and group in self.blocks and not self.uses[group]:
            tensors = {name: tensor for name, tensor in _stored(model, group).items() if tensor.is_meta}
            self.ahead.begin(group, {name: (self.places[name].read, tensor.dtype) for name, tensor in tensors.items()})

    def let_go(self, model: PreTrainedModel, group: str) -> None:
        """The opposite; what waits nowhere, such as a buffer, stays."""
        for name, tensor in _stored(model, group).items():
            if name in self.places:
                put_tensor(model, name, torch.empty_like(tensor, device="meta"))
        return_freed()  # so that many blocks take no more than few

    def file(self, group: str) -> Path:
        """Where a block is put that was changed."""
        return self.folder / f"{group}.safetensors"

    def rewrite(self, model: PreTrainedModel, group: str) -> None:
        """Put the block as it stands into a file of its own, where it waits from now on.

        Raises:
            UnwritableError: the disk is full.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _stored(model, group).items()}
        path = self.file(group)
        with whole_file(path) as partial_file:
            save_file(tensors, partial_file, metadata={"format": "pt"})
        gone = [name for name in self.places if name.startswith(f"{group}.")]
        for name in gone:
            del self.places[name]
        self.places |= {name: Place(path, name) for name in tensors}


def stream(model: PreTrainedModel, blocks: Iterable[str], places: Mapping[str, Place], folder: Path) -> None:
    """Make `model`, whose blocks, by name, are on the meta device, a streamed one: their tensors wait in `places`.

    Blocks that are changed will be put into `folder`, which belongs to the model.

    Raises:
        UserError: a tensor of a block waits nowhere, in another shape, or is another part's as well.
    """
    residency = Residency(blocks, places, folder, _ahead(model) if model.device.type == "cuda" else None)
    tensors = {name: x for group in residency.blocks for name, x in _stored(model, group).items()}
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    shared = sorted({*tied, *tied.values()} & tensors.keys())
    require(not shared, f"residency=streamed: {shared[:1]} is shared between parts of the model; use residency=whole")
    for name, tensor in tensors.items():
        if tensor.is_meta:  # others are buffers, which are never away
            require(name in residency.places, f"model: no file holds {name}")
            found, expected = residency.places[name].shape(), tuple(tensor.shape)
            require(found == expected, f"model: {name} has shape {found}, but the model of config.json {expected}")
    setattr(model, KEPT_AS, residency)


def twin(model: PreTrainedModel) -> PreTrainedModel | None:
    """Another streamed model of the same blocks as they now wait, which stay when those of `model` are changed.

    What is in no block is shared. None: `model` is whole.
    """
    residency = residency_of(model)
    if residency is None:
        return None
    outside = {id(x): x for x in (*model.parameters(), *model.buffers()) if not x.is_meta}
    own = Residency(residency.blocks, residency.places, residency.folder / "twin", residency.ahead and _ahead(model))
    return deepcopy(model, {**outside, id(residency): own})


def residency_of(model: nn.Module) -> Residency | None:
    """That of a streamed model; None: it is whole."""
    return vars(model).get(KEPT_AS)


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, in order: `named_blocks`, also where a streamed model has no linear layer left in them."""
    residency = residency_of(model)
    return named_blocks(model) if residency is None else submodules(model, residency.blocks)


@contextmanager
def at_hand(model: nn.Module, group: str, *, changes: bool = False, then: str = "") -> Iterator[None]:
    """Within this context the block called `group` has its weights, be the model streamed or whole.

    Args:
        model: the model.
        group: a block; what is called by another name is always there.
        changes: the block may be changed within; a streamed one then waits, as it is in the end, in a file of its own.
        then: the block whose turn is next, which may be read meanwhile.

    Raises:
        UnwritableError: the disk is full.
    """
    residency = residency_of(model)
    if residency is None or group not in residency.blocks:
        yield
        return
    assert isinstance(model, PreTrainedModel)
    residency.uses[group] += 1
    try:
        if residency.uses[group] == 1:
            residency.fetch(model, group)
            residency.look_ahead(model, then)
        yield
        if changes:
            residency.rewrite(model, group)
    finally:
        residency.uses[group] -= 1
        if not residency.uses[group]:
            residency.let_go(model, group)


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Within this context a streamed model runs as a whole: each block has its weights while it runs.

    Not for passes that keep a graph, which would hold all of them.
    """
    if residency_of(model) is None:
        yield
        return
    with ExitStack() as stack:
        blocks = blocks_of(model)
        for (name, block), then in zip(blocks.items(), [*list(blocks)[1:], ""], strict=True):
            stack.enter_context(instead(block, partial(_run, model, name, then, block.forward)))
        yield


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within this context `module` computes what `forward` does, and is still asked for its own arguments."""
    known: Any = module
    before = vars(module).get("forward")
    known.forward = update_wrapper(partial(forward), module.forward)
    try:
        yield
    finally:
        del known.forward  # the class's own is found again
        if before is not None:
            known.forward = before


def _ahead(model: PreTrainedModel) -> Ahead:
    return Ahead(model.device)


def _run(model: nn.Module, name: str, then: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with at_hand(model, name, then=then):
        return forward(*args, **kwargs)


class Waiting(Mapping[str, torch.Tensor]):
    """`stored_tensors` of a streamed model, each read when it is asked for, in the model's format.

    Raises:
        UserError: one that is asked for holds NaN or infinity.
    """

    def __init__(self, model: PreTrainedModel, residency: Residency):
        self.tensors, self.places = stored_tensors(model), residency.places

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name]
        found = self.places[name].read().to(tensor.dtype) if tensor.is_meta else tensor
        if found.dtype in NUMBERS and not all_finite(found):
            raise UserError(f"model: {name} holds NaN or infinity; the checkpoint is damaged")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def readable_tensors(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """`stored_tensors` with their values, wherever they are."""
    residency = residency_of(model)
    return stored_tensors(model) if residency is None else Waiting(model, residency)


def put_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Let `tensor` be the parameter or buffer of `model` called `name`."""
    parent, _, key = name.rpartition(".")
    module = model.get_submodule(parent)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[key] = tensor


def _stored(model: nn.Module, group: str) -> dict[str, torch.Tensor]:
    """The tensors of a block that a file holds, under their names in the model."""
    return model.get_submodule(group).state_dict(prefix=f"{group}.", keep_vars=True)
