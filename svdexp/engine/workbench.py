"""Decompositions of one group of layers at a time, computed at most once per identity."""

from collections.abc import Collection, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from svdexp.calibration import Statistics, StatisticsSource
from svdexp.factorisation.decompose import Decomposition, decompose
from svdexp.factorisation.weighting import Weighting
from svdexp.models.matrices import Matrix, Ranks, stacks
from svdexp.models.residency import at_hand
from svdexp.runtime.clock import StageClock
from svdexp.runtime.shelves import Shelf
from svdexp.schema import Numerics
from svdexp.storage import Kept, Storage

COMPONENTS, SPECTRAL = ("left", "right"), ("spectrum", "damping")
KEPT = ".kept"  # of the item that has what a storage keeps beside factors
NONE = torch.empty(0, 0)  # stands for components that were not asked for


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

    def spectra(self, group: str) -> dict[str, Decomposition]:
        """Of every layer of `group`, by layer name, without components: of those nothing is read."""
        return self._find(group, [layer.name for layer in self.layers if layer.group == group], SPECTRAL)

    def decompositions(self, group: str, names: Collection[str]) -> dict[str, Decomposition]:
        """Those of the layers of `group` in `names`, from the shelf if they are there; of others nothing is read."""
        return self._find(group, names, COMPONENTS + SPECTRAL)

    def decompose(self, group: str) -> dict[str, torch.Tensor]:
        """Compute all of `group` and put it on the shelf."""
        with self.clock("calibration"):
            statistics = dict(self.source.statistics(group))
        tensors: dict[str, torch.Tensor] = {}
        aside: dict[str, torch.Tensor] = {}
        with self.clock("factorisation"), at_hand(self.model, group):
            together = self._common(statistics)
            for matrix in (matrix for matrix in self.layers if matrix.name in statistics):
                found = statistics.pop(matrix.name)  # not all are needed to the end
                shared = together.get(matrix.rivals or "")
                rest, kept = self.storage.target(matrix.weight(self.model), found.get("gram"), shared)
                done = decompose(rest, self.weighting(found), numerics=self.numerics)
                part = done if self.ranks is None else done.keep(self.ranks[matrix.name])
                tensors |= {f"{matrix.name}/{key}": value for key, value in vars(part).items()}
                owner = matrix.name if shared is None else matrix.rivals
                aside |= {f"{owner}/{key}": value for key, value in (kept or {}).items()}
        if aside:
            self.shelf.put(f"{group}{KEPT}", aside)
        self.shelf.put(group, tensors)
        return tensors

    def kept(self, group: str, name: str) -> Kept | None:
        """What the storage keeps of the layer `name` of `group` beside its factors."""
        matrix = next(matrix for matrix in self.layers if matrix.name == name)
        if not self.storage.divides(matrix):
            return None
        if self.shelf.get(f"{group}{KEPT}") is None:
            self.decompose(group)
        aside = self.shelf.get(f"{group}{KEPT}") or {}
        owners = (name, matrix.rivals)
        return {key.rpartition("/")[2]: value for key, value in aside.items() if key.rpartition("/")[0] in owners}

    def _common(self, statistics: Mapping[str, Statistics]) -> dict[str, Kept]:
        """What the storage keeps once for the experts of a stack, by its name."""
        found = {}
        for stack, members in stacks(matrix for matrix in self.layers if matrix.name in statistics).items():
            weights = [matrix.weight(self.model) for matrix in members]
            common = self.storage.common(weights, [statistics[matrix.name] for matrix in members])
            if common is not None:
                found[stack] = common
        return found

    def _find(self, group: str, names: Collection[str], keys: Collection[str]) -> dict[str, Decomposition]:
        wanted = {f"{name}/{key}" for name in names for key in keys}
        tensors = self.shelf.get(group, wanted)
        if tensors is None:
            tensors = self.decompose(group)
        blank = dict.fromkeys(COMPONENTS, NONE)
        return {name: Decomposition(**blank | {key: tensors[f"{name}/{key}"] for key in keys}) for name in names}
