"""Statistics block by block, from inputs that the compressed blocks before it produce.

Only one block's statistics are alive.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.calibration.collector import Collector, shared_inputs
from svdexp.calibration.dense import collect
from svdexp.calibration.needs import Needs, by_layer
from svdexp.calibration.statistics import INPUT_STATISTICS, Statistics
from svdexp.models.hooks import Modules, call_hooks
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.path import BlockPath, ForwardStopped
from svdexp.models.structure import named_blocks
from svdexp.runtime.progress import progress


class BlockwiseStatistics:
    """Ask for the groups in model order, and compress each block before asking for the next."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, needs: Needs):
        self.model, self.layers, self.windows, self.needs = model, layers, windows, needs
        self.blocks = named_blocks(model)
        self._known: dict[str, dict[str, str]] = {}  # leaders of all members, by group

    @cached_property
    def path(self) -> BlockPath:
        """The windows, which set out when the first block is asked for: where all are cached, none ever is."""
        return BlockPath(self.model, self.windows)

    def statistics(self, group: str, names: Collection[str] | None = None) -> dict[str, Statistics]:
        """Statistics of one block's layers, or only of those in `names`, under the compressed path.

        May be asked again for the same block after a change to it. A layer outside the blocks runs the full model.
        """
        members = [x for x in self.layers if x.group == group and (names is None or x.name in names)]
        if group not in self.blocks:
            return collect(self.model, members, self.windows, self.needs)
        self.path.reach(group)
        return self._collect(group, members)

    def sharing(self, group: str) -> list[list[str]]:
        """The names of a block's layers, those fed by one tensor together, in the order of the model's modules."""
        members = [layer for layer in self.layers if layer.group == group]
        if group not in self.blocks:
            return [[layer.name] for layer in members]
        self.path.reach(group)
        leaders = self._leaders(group, members)
        return [[name for name in leaders if leaders[name] == leader] for leader in dict.fromkeys(leaders.values())]

    def leave(self, group: str) -> None:
        """Take the windows through the block as it is now, unless none comes behind it."""
        if group in self.blocks and group != self.path.waiting[-1]:
            self.path.reach(group)
            self.path.advance()

    @torch.no_grad()
    def _leaders(self, group: str, members: Sequence[Matrix]) -> dict[str, str]:
        """Of each member the first one that is fed by the same tensors, whatever has become of the layers since."""
        if group not in self._known:
            layers = layers_of(self.model, [layer for layer in self.layers if layer.group == group])
            self._known[group] = shared_inputs(layers, lambda: self.path.run(group, self.path.states[0]))
        first: dict[str, str] = {}
        return {x.name: first.setdefault(self._known[group][x.name], x.name) for x in members}

    @torch.no_grad()
    def _collect(self, group: str, members: Sequence[Matrix]) -> dict[str, Statistics]:
        leaders = self._leaders(group, members)
        collector = Collector(self.model, members, leaders, self.needs)
        needs = {need for asked in by_layer(self.needs, members).values() for need in asked}
        layers = layers_of(self.model, [layer for layer in members if leaders[layer.name] == layer.name])
        alone = needs <= INPUT_STATISTICS.keys()
        calls: Counter[str] | None = None
        with collector.listen():
            for collector.window, state in progress(list(enumerate(self.path.states)), f"calibration {group}"):
                made = self._feed(group, state, layers, calls)
                if alone and collector.window == 0 and len(made) == len(layers):  # no expert without a token
                    calls = made
        return collector.results()

    def _feed(self, group: str, state: torch.Tensor, layers: Modules, calls: Counter[str] | None) -> Counter[str]:
        """Run a block, but no further than to where each of `layers` has been called as often as in `calls`.

        Returns how often they were called.
        """
        made: Counter[str] = Counter()

        def see(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            made[name] += 1
            if made == calls:
                raise ForwardStopped

        with call_hooks(layers, see), suppress(ForwardStopped):
            self.path.run(group, state)
        return made
