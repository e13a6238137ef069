"""Decompositions of one group of layers at a time, computed at most once per identity."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from svdexp.calibration import StatisticsSource
from svdexp.factorisation.decompose import Decomposition, decompose
from svdexp.factorisation.weighting import Weighting
from svdexp.models.matrices import Matrix, Ranks
from svdexp.runtime.clock import StageClock
from svdexp.runtime.shelves import Shelf
from svdexp.schema import Numerics
from svdexp.storage import Storage


class Workbench:
    """Brings a group's weights, statistics and weighting together; of the weights, what `storage` wants decomposed.

    Given `ranks`, only the components that those ranks keep are put on the shelf.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Matrix],
        source: StatisticsSource,
        weighting: Weighting,
        numerics: Numerics,
        storage: Storage,
        shelf: Shelf,
        clock: StageClock,
        ranks: Ranks | None = None,
    ):
        self.model, self.layers, self.source = model, layers, source
        self.weighting, self.shelf, self.clock = weighting, shelf, clock
        self.numerics, self.storage, self.ranks = numerics, storage, ranks
        self._last: tuple[str, dict[str, Decomposition]] | None = None

    def decompositions(self, group: str) -> dict[str, Decomposition]:
        """The decomposition of every layer of `group`, by layer name; from the shelf if it is there.

        The group asked for last stays in memory: allocations that try out layers ask for one many times.
        """
        if self._last is None or self._last[0] != group:
            self._last = (group, self._find(group))
        return self._last[1]

    def _find(self, group: str) -> dict[str, Decomposition]:
        tensors = self.shelf.remember(group, lambda: self._decompose(group))
        names = [layer.name for layer in self.layers if layer.group == group]
        keys = Decomposition.__dataclass_fields__
        return {name: Decomposition(**{key: tensors[f"{name}/{key}"] for key in keys}) for name in names}

    def _decompose(self, group: str) -> dict[str, torch.Tensor]:
        with self.clock("calibration"):
            statistics = self.source.statistics(group)
        tensors: dict[str, torch.Tensor] = {}
        with self.clock("factorisation"):
            matrices = {matrix.name: matrix for matrix in self.layers}
            for name, part in statistics.items():
                rest, _ = self.storage.target(matrices[name].weight(self.model))
                done = decompose(rest, self.weighting(part), numerics=self.numerics)
                kept = done if self.ranks is None else done.keep(self.ranks[name])
                tensors |= {f"{name}/{key}": value for key, value in vars(kept).items()}
        return tensors
