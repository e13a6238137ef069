"""Statistics block by block, from inputs that the compressed blocks before it produce.

Only one block's statistics are alive. Between blocks the hidden states of all windows wait on the CPU; the
other arguments of a block (positions, masks) are recorded once and replayed, after a check that they do not
depend on the window.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.calibration.collector import Collector, shared_inputs
from svdexp.calibration.dense import collect
from svdexp.calibration.statistics import Statistics
from svdexp.models.hooks import call_hooks
from svdexp.models.matrices import Matrix
from svdexp.models.structure import hidden_states, named_blocks, split_arguments
from svdexp.runtime.errors import UserError
from svdexp.runtime.progress import progress


class BlockwiseStatistics:
    """Ask for the groups in model order, and compress each block before asking for the next."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, needs: Sequence[str]):
        self.model, self.layers, self.windows, self.needs = model, layers, windows, needs
        self.blocks = named_blocks(model)
        self._waiting = list(self.blocks)  # blocks whose outputs are not computed yet
        self._states: list[torch.Tensor] | None = None
        self._arguments: dict[str, dict[str, Any]] = {}

    def statistics(self, group: str, names: Collection[str] | None = None) -> dict[str, Statistics]:
        """Statistics of one block's layers, or only of those in `names`, under the compressed path.

        May be asked again for the same block after a change to it. A layer outside the blocks runs the full model.
        """
        members = [x for x in self.layers if x.group == group and (names is None or x.name in names)]
        if group not in self.blocks:
            return collect(self.model, members, self.windows, self.needs)
        with torch.no_grad():
            self._reach(group)
            return self._collect(group, members)

    def sharing(self, group: str) -> list[list[str]]:
        """The names of a block's layers, those fed by one tensor together, in the order of the model's modules."""
        names = [layer.name for layer in self.layers if layer.group == group]
        if group not in self.blocks:
            return [[name] for name in names]
        with torch.no_grad():
            self._reach(group)
            states = self._states or []
            leaders = shared_inputs(self.model, names, lambda: self._run(group, states[0]))
        return [[name for name in names if leaders[name] == leader] for leader in dict.fromkeys(leaders.values())]

    def _reach(self, group: str) -> None:
        """Bring the hidden states to the entrance of the block `group`."""
        if self._states is None:
            self._arguments = recorded_arguments(self.model, self.blocks, self.windows)
            self._states = first_block_inputs(self.model, next(iter(self.blocks.values())), self.windows)
        while self._waiting[0] != group:
            self._advance(self._waiting.pop(0))

    def _run(self, group: str, state: torch.Tensor) -> torch.Tensor:
        return run_block(self.blocks[group], state.to(self.model.device), self._arguments[group])

    def _advance(self, group: str) -> None:
        assert self._states is not None
        for index, state in enumerate(self._states):
            self._states[index] = self._run(group, state).cpu()

    def _collect(self, group: str, members: Sequence[Matrix]) -> dict[str, Statistics]:
        assert self._states is not None
        states = self._states
        leaders = shared_inputs(self.model, [m.name for m in members], lambda: self._run(group, states[0]))
        collector = Collector(self.model, members, leaders, self.needs)
        with collector.listen():
            for collector.window, state in progress(list(enumerate(states)), f"calibration {group}"):
                self._run(group, state)
        return collector.results()


class ForwardStopped(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once the first block's input is known."""


def first_block_inputs(model: PreTrainedModel, block: nn.Module, windows: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states (1, L, d) that enter the first block, one per window, on the CPU."""
    states: list[torch.Tensor] = []

    def stop(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(split_arguments(block, args, kwargs)[0].cpu())
        raise ForwardStopped

    with call_hooks({"first": block}, stop):
        for window in windows:
            with suppress(ForwardStopped):
                model.base_model(window[None].to(model.device), use_cache=False)
    return states


def recorded_arguments(
    model: PreTrainedModel, blocks: dict[str, nn.Module], windows: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """The arguments of every block besides the hidden states, the same for all windows of one length.

    Raises:
        UserError: they differ between two windows, so replaying them would be wrong.
    """
    first = _record(model, blocks, windows[0])
    last = _record(model, blocks, windows[-1])
    for name, arguments in first.items():
        for key, value in arguments.items():
            if not _equal(value, last[name].get(key)):
                raise UserError(f"{name} cannot be replayed alone: its argument {key} depends on the text")
    return first


def run_block(block: nn.Module, state: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """Hidden states after the block."""
    return hidden_states(block(state, **arguments))


def _record(model: PreTrainedModel, blocks: dict[str, nn.Module], window: torch.Tensor) -> dict[str, dict[str, Any]]:
    arguments: dict[str, dict[str, Any]] = {}

    def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments[name] = split_arguments(blocks[name], args, kwargs)[1]

    with call_hooks(blocks, keep):
        model.base_model(window[None].to(model.device), use_cache=False)
    return arguments


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    return type(a) is type(b)
