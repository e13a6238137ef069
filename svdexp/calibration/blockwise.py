"""Statistics block by block, from inputs that the compressed blocks before it produce.

Only one block's statistics are alive.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel

from svdexp.calibration.collector import Collector, shared_inputs
from svdexp.calibration.dense import collect
from svdexp.calibration.needs import Needs
from svdexp.calibration.statistics import Statistics
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.path import BlockPath
from svdexp.models.structure import named_blocks
from svdexp.runtime.progress import progress


class BlockwiseStatistics:
    """Ask for the groups in model order, and compress each block before asking for the next."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, needs: Needs):
        self.model, self.layers, self.windows, self.needs = model, layers, windows, needs
        self.blocks = named_blocks(model)

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

    @torch.no_grad()
    def _leaders(self, group: str, members: Sequence[Matrix]) -> dict[str, str]:
        return shared_inputs(layers_of(self.model, members), lambda: self.path.run(group, self.path.states[0]))

    @torch.no_grad()
    def _collect(self, group: str, members: Sequence[Matrix]) -> dict[str, Statistics]:
        collector = Collector(self.model, members, self._leaders(group, members), self.needs)
        with collector.listen():
            for collector.window, state in progress(list(enumerate(self.path.states)), f"calibration {group}"):
                self.path.run(group, state)
        return collector.results()
