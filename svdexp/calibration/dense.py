"""All statistics from the dense model, in one pass over the calibration windows."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from svdexp.cache import Shelf
from svdexp.calibration.hooks import Collector, shared_inputs
from svdexp.calibration.statistics import Statistics, pack, unpack
from svdexp.data.windows import batches
from svdexp.models.structure import Layer
from svdexp.progress import progress


class StatisticsSource(Protocol):
    """Gives the statistics of one group of layers (a block) at a time, in model order."""

    def statistics(self, group: str) -> dict[str, Statistics]:
        """Statistics of the layers of `group`, by layer name."""


class DenseStatistics:
    """Every statistic from the model as it is when the first one is asked for.

    `shelves` maps each needed statistic to where it is kept: only what no earlier run left there is
    collected, all of it in one pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Layer],
        windows: torch.Tensor,
        shelves: Mapping[str, Shelf],
    ):
        self.model, self.layers, self.windows, self.shelves = model, layers, windows, shelves
        self._complete = False

    def statistics(self, group: str) -> dict[str, Statistics]:
        """Collects everything that is missing at the first call, then reads one group."""
        if not self._complete:
            self._collect_missing()
        result: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._names(group)}
        for statistic, shelf in self.shelves.items():
            packed = shelf.get(group)
            assert packed is not None
            for name, tensor in unpack(packed).items():
                result[name][statistic] = tensor.to(self.model.device)
        return dict(result)

    def _names(self, group: str) -> list[str]:
        return [layer.name for layer in self.layers if layer.group == group]

    def _collect_missing(self) -> None:
        groups = dict.fromkeys(layer.group for layer in self.layers)
        missing = [need for need, shelf in self.shelves.items() if any(shelf.get(g) is None for g in groups)]
        results = collect(self.model, self.layers, self.windows, missing)
        for statistic in missing:
            for group in groups:
                self.shelves[statistic].put(group, pack({n: results[n][statistic] for n in self._names(group)}))
        self._complete = True


@torch.no_grad()
def collect(
    model: PreTrainedModel, layers: Sequence[Layer], windows: torch.Tensor, needs: Sequence[str]
) -> dict[str, Statistics]:
    """Run all windows (N, L) through the model and return the statistics of each layer.

    Raises:
        UserError: an activation is not finite.
    """
    if not needs:
        return {layer.name: {} for layer in layers}
    body = _smallest_model(model, layers)
    probe = windows[:1, :16].to(model.device)
    leaders = shared_inputs(model, [layer.name for layer in layers], lambda: body(probe, use_cache=False))
    collector = Collector(model, layers, leaders, needs)
    with collector.listen():
        for collector.window, batch in progress(batches(windows), "calibration"):
            body(batch.to(model.device), use_cache=False)
    return collector.results()


def _smallest_model(model: PreTrainedModel, layers: Sequence[Layer]) -> Any:
    """The base model where that holds every layer: the head's large product is then never computed."""
    body: Any = model.base_model
    inside = {name for name, _ in body.named_modules(prefix=model.base_model_prefix)}
    return body if all(layer.name in inside for layer in layers) else model
