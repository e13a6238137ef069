"""All statistics from the dense model, in one pass over the calibration windows."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from svdexp.calibration.collector import Collector, shared_inputs
from svdexp.calibration.loss import next_token_loss
from svdexp.calibration.needs import Needs, by_layer, distinct, of_backward, only
from svdexp.calibration.statistics import Statistics, pack, unpack
from svdexp.calibration.streamed import Sweep, discard
from svdexp.calibration.sums import KeptSums
from svdexp.data.windows import batches
from svdexp.models.behaviour import frozen, gradients_from_embeddings
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.pictures import in_short
from svdexp.models.residency import residency_of
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Alone, Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf, identity

log = logging.getLogger(__name__)


class StatisticsSource(Protocol):
    """Gives the statistics of one group of layers (a block) at a time, in model order."""

    def statistics(self, group: str) -> dict[str, Statistics]:
        """Statistics of the layers of `group`, by layer name."""


class DenseStatistics:
    """Every statistic from the model as it is when the first one is asked for.

    `shelves` maps each needed statistic to where it is kept: only what no earlier run left there is
    collected, all of it in one pass, whose sums are kept in the folder `sums` until it is on the shelves. Of a streamed
    model that takes sweeps, whose states wait in the folder `states`.
    `needs` says which layers want which; by default all want what there are shelves for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Matrix],
        windows: torch.Tensor,
        shelves: Mapping[str, Shelf],
        states: Path | None = None,
        needs: Needs | None = None,
        sums: Path | None = None,
    ):
        self.model, self.layers, self.windows, self.shelves, self.sums = model, layers, windows, shelves, sums
        self.states, self.needs = states, by_layer(list(shelves) if needs is None else needs, layers)

    def statistics(self, group: str) -> dict[str, Statistics]:
        """Reads one group; whatever no run left, or left damaged, is collected first, for all groups at once."""
        found = self._read(group)
        if found is None:
            self._collect_missing()
            found = self._read(group)
        assert found is not None
        return found

    def _read(self, group: str) -> dict[str, Statistics] | None:
        result: dict[str, dict[str, torch.Tensor]] = {x.name: {} for x in self.layers if x.group == group}
        wanted = {need: shelf for need, shelf in self.shelves.items() if self._wanting(need, group)}
        packed = {statistic: shelf.get(group) for statistic, shelf in wanted.items()}  # all, to know what is damaged
        for statistic, tensors in packed.items():
            if tensors is None:
                return None
            for name, tensor in unpack(tensors).items():
                result[name][statistic] = tensor.to(self.model.device)
        return dict(result)

    def _wanting(self, statistic: str, group: str) -> list[str]:
        return [x.name for x in self.layers if x.group == group and statistic in self.needs[x.name]]

    def prepare(self, processes: Processes) -> None:
        """Leave on the shelves whatever is missing there, the windows dealt out among processes that all call this."""
        if residency_of(self.model):
            self._sweep(processes)
            return
        kept = self._collect(processes.agree(self._missing()), processes)
        processes.wait()
        kept.discard()

    def forget_states(self) -> None:
        """Remove what a sweep that was killed left, when its statistics have come about in another way.

        Gradients may be those of a run that wants them, where this one does not.
        """
        if self.states is not None and (of_backward(self.shelves) or not any(self.states.rglob("gradients"))):
            discard(self.states)

    def _collect_missing(self) -> None:
        if not all(layer.is_dense(self.model) for layer in self.layers):
            raise UserError("cache: statistics vanished while the model was being compressed; start the run again")
        if residency_of(self.model):
            self._sweep()
            return
        self._collect(self._missing(), Alone()).discard()

    def _collect(self, missing: Sequence[str], processes: Processes) -> KeptSums:
        needs = only(self.needs, missing)
        mine = {"needs": needs, "process": [processes.index, processes.count]}
        kept = KeptSums(self.sums and self.sums / identity(**mine))
        results = collect(self.model, self.layers, self.windows, needs, processes, kept)
        if processes.main:
            self._put(missing, results)
        return kept

    def _sweep(self, processes: Processes | None = None) -> None:
        assert self.states is not None, "a streamed model's statistics need a folder"
        Sweep(self.model, self.layers, self.windows, self.shelves, self.states, self.needs, processes).carry_out()

    def _missing(self) -> list[str]:
        groups = {layer.group for layer in self.layers}
        return [
            need
            for need, shelf in self.shelves.items()
            if any(group not in shelf and self._wanting(need, group) for group in groups)
        ]

    def _put(self, statistics: Sequence[str], results: Mapping[str, Statistics]) -> None:
        for statistic in statistics:
            for group in dict.fromkeys(layer.group for layer in self.layers):
                if names := self._wanting(statistic, group):
                    self.shelves[statistic].put(group, pack({name: results[name][statistic] for name in names}))


def collect(
    model: PreTrainedModel,
    layers: Sequence[Matrix],
    windows: torch.Tensor,
    needs: Needs,
    processes: Processes | None = None,
    kept: KeptSums | None = None,
) -> dict[str, Statistics]:
    """Run all windows (N, L) through the model once and return of each layer the statistics that it `needs`.

    Given `processes`, all of them must call this: each runs its share of the windows. One that was killed goes on from
    the sums that it had `kept`.

    Raises:
        UserError: an activation or a gradient is not finite.
    """
    asked, processes, kept = by_layer(needs, layers), processes or Alone(), kept or KeptSums()
    if not any(asked.values()):
        return {layer.name: {} for layer in layers}
    backward = bool(of_backward(distinct(asked)))
    run, body = (forward_and_backward, model) if backward else (forward, smallest_model(model, layers))
    with torch.no_grad():
        leaders = shared_inputs(
            layers_of(model, layers), lambda: body(in_short(windows, 16).to(model.device), use_cache=False)
        )
    collector = Collector(model, layers, leaders, asked)
    # one window at a time where gradients are taken, as Fisher squares each window's own
    parts = processes.share(batches(windows, 1 if backward else None))
    seen, found = kept.read(collector.sums())
    if seen:
        log.info("calibration: goes on behind %d of %d batches of windows", seen, len(parts))
        collector.resume(found)
    del found  # a sum is let go when its result is made
    with collector.listen(), frozen(model):
        for collector.window, batch in progress(parts[seen:], "calibration"):
            run(body, batch.to(model.device))
            seen += 1
            kept.keep(seen, collector.sums)
    collector.pool(processes)
    return collector.results()


@torch.no_grad()
def forward(body: Any, batch: torch.Tensor) -> None:
    """Run a batch of windows (b, L)."""
    body(batch, use_cache=False)


def forward_and_backward(model: Any, batch: torch.Tensor) -> None:
    """One backward pass of the summed next-token loss; gradients start at the embeddings, no parameter has any."""

    with gradients_from_embeddings(model):
        next_token_loss(model(batch, use_cache=False).logits, batch).backward()  # type: ignore[no-untyped-call]


def smallest_model(model: PreTrainedModel, layers: Sequence[Matrix]) -> Any:
    """The base model where that holds every layer: the head's large product is then never computed."""
    body: Any = model.base_model
    inside = f"{model.base_model_prefix}."
    return body if all(layer.name.startswith(inside) for layer in layers) else model
