"""The walk of hidden states through a model's blocks, each block run on its own.

Between blocks the hidden states of all windows wait on the CPU. A block's other arguments (positions, masks) are
recorded once and replayed, after a check that they do not depend on the window.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.hooks import call_hooks, output_hooks
from svdexp.models.pictures import representatives
from svdexp.models.residency import at_hand, blocks_of, instead, residency_of, running
from svdexp.runtime.errors import UserError
from svdexp.runtime.progress import progress


class Replay:
    """A model's blocks, each to be run on its own as in the model's own pass, and what follows the last one.

    Whether gradients are recorded is up to the caller. Of a streamed model a block must be at hand for `run`.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, sizes: Collection[int] = ()):
        """Record how blocks are called for windows (N, L), one by one and in batches of each of the `sizes`.

        Raises:
            UserError: as `recorded_calls`.
        """
        self.model, self.blocks = model, blocks_of(model)
        with running(model):
            self._calls = recorded_calls(model, windows, sizes)

    def run(self, name: str, state: torch.Tensor) -> torch.Tensor:
        """What the block called `name` makes of the hidden states (b, L, d) of a batch, where the model stands."""
        return hidden_states(self.blocks[name](state.to(self.model.device), **self._calls[len(state)][name].arguments))

    def leave(self, windows: torch.Tensor, state: torch.Tensor) -> Any:
        """What the model makes of windows (b, L) whose hidden states (b, L, d) have left its last block: its output.

        The blocks do not run for it.
        """
        device = self.model.device
        state = state.to(device)
        calls = self._calls[len(state)]
        with ExitStack() as stack:  # what all blocks but the last one give does not matter
            for name, block in self.blocks.items():
                stack.enter_context(instead(block, partial(_given, calls[name].wrapped(state))))
            return self.model(windows.to(device), use_cache=False)


class BlockPath(Replay):
    """The hidden states of all windows at the entrance of one block after the other.

    They take each block as it is when they go through. `model` may be changed in between, but not before its first
    block. Whether gradients are recorded in `run` is up to the caller; nothing else here records any.

    Attributes:
        waiting: the names of the blocks that the states have not gone through, in order.
        states: what enters the first of these, (1, L, d) per window, on the CPU.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, windows: torch.Tensor):
        """Bring the windows (N, L) to the entrance of the first block.

        Raises:
            UserError: as `recorded_calls`.
        """
        super().__init__(model, windows)
        self.waiting = list(self.blocks)
        self.states = first_states(model, windows)

    def fork(self, model: PreTrainedModel) -> "BlockPath":
        """Another path from where this one is, for other versions of the blocks ahead: those of `model`."""
        other = copy(self)
        other.model, other.blocks = model, blocks_of(model)
        other.waiting, other.states = list(self.waiting), list(self.states)
        return other

    @torch.no_grad()
    def advance(self, what: str | None = None) -> None:
        """Take the states through the next block, behind a progress bar where it is said for `what`."""
        name = self.waiting.pop(0)
        items = list(enumerate(self.states))
        with at_hand(self.model, name, then=self.waiting[0] if self.waiting else ""):
            for index, state in progress(items, f"{what} {name}") if what else items:
                self.states[index] = self.run(name, state).cpu()

    def reach(self, name: str, what: str | None = None) -> None:
        """Bring the states to the entrance of the block called `name`, which they have not gone through."""
        assert name in self.waiting, f"the path is behind {name}"
        while self.waiting[0] != name:
            self.advance(what)


@dataclass
class Pass:
    """One pass through a block.

    Attributes:
        block: its name.
        state, output: the hidden states that came in, and that came out.
        arguments: all else that it was given.
        beside: all else that it gave, in the tuple or list that it gave; None: the hidden states came bare.
    """

    block: str
    state: torch.Tensor
    arguments: Mapping[str, Any]
    output: torch.Tensor
    beside: Sequence[Any] | None


@dataclass(frozen=True)
class Call:
    """What a block is given and gives beside hidden states: `arguments` and `beside` of a `Pass`."""

    arguments: Mapping[str, Any]
    beside: Sequence[Any] | None

    def wrapped(self, state: torch.Tensor) -> Any:
        """The block's output with `state` in it."""
        return state if self.beside is None else type(self.beside)([state, *self.beside])  # type: ignore[call-arg]


@contextmanager
def block_passes(model: nn.Module, see: Callable[[Pass], object]) -> Iterator[None]:
    """Call `see` after every pass through a block, while the model runs as a whole."""
    blocks = blocks_of(model)

    def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        beside = output[1:] if isinstance(output, tuple | list) else None
        see(Pass(name, *split_arguments(blocks[name], args, kwargs), hidden_states(output), beside))

    with output_hooks(blocks, keep):
        yield


def recorded_calls(
    model: PreTrainedModel, windows: torch.Tensor, sizes: Collection[int] = ()
) -> dict[int, dict[str, Call]]:
    """What every block is given and gives besides the hidden states, the same for all windows of one length.

    By the `sizes` of batches and by blocks; 1 is always among them. Where blocks give nothing else, what they are given
    is made around them, and all windows but the first go past them.

    Raises:
        UserError: arguments differ between two windows, so replaying them would be wrong.
    """
    first = _calls(model, windows[:1])
    with ExitStack() as stack:
        for block in blocks_of(model).values() if all(call.beside is None for call in first.values()) else ():
            stack.enter_context(instead(block, partial(_past, block)))
        others = [_calls(model, window[None]) for window in representatives(windows)]
        larger = {size: _calls(model, windows[:size]) for size in sizes if size > 1}
    for name, call in first.items():
        for key, value in call.arguments.items():
            if not all(_equal(value, other[name].arguments.get(key)) for other in others):
                raise UserError(f"{name} cannot be replayed alone: its argument {key} depends on the text")
    return {1: first} | larger


def first_states(model: PreTrainedModel, windows: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states (1, L, d) that enter the first block, one per window, on the CPU; no block runs for them."""
    states: list[torch.Tensor] = []
    name, block = next(iter(blocks_of(model).items()))

    def stop(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(split_arguments(block, args, kwargs)[0].cpu())
        raise ForwardStopped

    with call_hooks({name: block}, stop):
        for window in windows:
            with suppress(ForwardStopped):
                _run(model, window[None])
    return states


class ForwardStopped(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once the first block's input is known."""


def split_arguments(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A block's incoming hidden states, which are its first parameter, and its other arguments by name."""
    names = list(signature(block.forward).parameters)
    named = dict(zip(names, args, strict=False)) | kwargs
    hidden = named.pop(names[0])
    assert isinstance(hidden, torch.Tensor)
    return hidden, named


def hidden_states(output: Any) -> torch.Tensor:
    """The hidden states in a block's output, which some architectures wrap in a tuple or a list."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


@contextmanager
def own_code(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within this context the model's own code runs on so many tokens; of what it raises a UserError is made."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, OSError, UserError):  # the last two of what reads a streamed one
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model: {type(model).__name__} does not run on {tokens} tokens: {reason}") from error


def _past(block: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    return split_arguments(block, args, kwargs)[0]


def _given(output: Any, *_: Any, **__: Any) -> Any:
    return output


def _calls(model: PreTrainedModel, batch: torch.Tensor) -> dict[str, Call]:
    found: dict[str, Call] = {}

    def keep(one: Pass) -> None:
        found[one.block] = Call(one.arguments, one.beside)

    first_run = residency_of(model) is not None  # whole ones were tried out
    with block_passes(model, keep), own_code(model, batch.shape[1]) if first_run else nullcontext():
        _run(model, batch)
    return found


def _run(model: PreTrainedModel, batch: torch.Tensor) -> None:
    model.base_model(batch.to(model.device), use_cache=False)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    return type(a) is type(b)
