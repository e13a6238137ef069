"""What each matrix loses in each of several forms, in the weighting's unit: measured, or the tail of a spectrum.

Rounding and products are in float32: an error of one part in a million in a loss decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from svdexp.allocation.spectra import tails
from svdexp.calibration import StatisticsSource
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Metric, Weighting
from svdexp.factorisation.loss import energy, loss
from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix
from svdexp.models.residency import at_hand
from svdexp.runtime.clock import StageClock
from svdexp.runtime.shelves import Shelf
from svdexp.schema import SigmaFuse
from svdexp.storage import Form

Losses = dict[str, torch.Tensor]
ENERGY = "energy"  # what a matrix loses where nothing of it is left


@dataclass(frozen=True)
class LossBench:
    """Losses of one group of layers at a time, each form's computed at most once per identity.

    Attributes:
        forms: by their words.
        benches: decompositions, by what storages split off, for the forms that have ranks.
        shelf: losses by group: `NAME/WORD` is (1,), or by rank (min(m, n) + 1,), infinite where it is not measured.
    """

    model: PreTrainedModel
    layers: Sequence[Matrix]
    source: StatisticsSource
    weighting: Weighting
    forms: Mapping[str, Form]
    benches: Mapping[str | None, Workbench]
    shelf: Shelf
    clock: StageClock

    def members(self, group: str) -> list[Matrix]:
        """The layers of a group."""
        return [layer for layer in self.layers if layer.group == group]

    def missing(self, group: str) -> list[str]:
        """The words of forms whose losses no run left."""
        found = self.shelf.get(group) or {}
        words = [ENERGY, *self.forms]
        return [word for word in words if any(f"{layer.name}/{word}" not in found for layer in self.members(group))]

    def measure(self, group: str) -> None:
        """Leave what is missing of `group` on the shelf."""
        missing = self.missing(group)
        if not missing:
            return
        with self.clock("calibration"):
            statistics = self.source.statistics(group)
        with self.clock("factorisation"), at_hand(self.model, group):
            metrics = {layer.name: self.weighting(statistics[layer.name]) for layer in self.members(group)}
            weights = {layer.name: layer.weight(self.model).float() for layer in self.members(group)}
            energies = {name: energy(W, metrics[name]) for name, W in weights.items()}
            found = {
                f"{name}/{ENERGY}": torch.tensor([energy], dtype=torch.float64) for name, energy in energies.items()
            }
            codes = {word: self.forms[word] for word in missing if word in self.forms and not self.forms[word].ranked}
            for names in alike(metrics):
                found |= whole_losses({name: weights[name] for name in names}, metrics, codes)
            for word in (word for word in missing if word in self.forms and self.forms[word].ranked):
                for layer in self.members(group):
                    W, metric = weights[layer.name], metrics[layer.name]
                    found[f"{layer.name}/{word}"] = self._ranked(layer, self.forms[word], W, metric)
        self.shelf.put(group, (self.shelf.get(group) or {}) | found)

    def losses(self, group: str) -> dict[str, Losses]:
        """Of the layers of `group`, by form."""
        tensors = self.shelf.get(group)
        if tensors is None or self.missing(group):
            self.measure(group)
            tensors = self.shelf.get(group)
        assert tensors is not None
        words = [ENERGY, *self.forms]
        return {x.name: {word: tensors[f"{x.name}/{word}"] for word in words} for x in self.members(group)}

    def _ranked(self, layer: Matrix, form: Form, W: torch.Tensor, metric: Metric) -> torch.Tensor:
        """By rank."""
        bench, ranks = self.benches[form.storage.split], form.measured(layer.m, layer.n)
        if ranks is None:
            return tails(bench.spectra(layer.group)[layer.name].spectrum)
        part = bench.decompositions(layer.group, [layer.name])[layer.name]
        found = torch.full((min(layer.m, layer.n) + 1,), torch.inf, dtype=torch.float64)
        rest, _ = form.storage.target(W, kept=bench.kept(layer.group, layer.name))
        for rank in ranks:
            factors = part.truncate(rank, SigmaFuse.balanced)  # of a cache on disk, on the CPU
            held = form.storage.rounded_factors(Factors(factors.A.to(W.device), factors.B.to(W.device)))
            found[rank] = loss((rest - held.A @ held.B).float(), metric)
        return found


def alike(metrics: Mapping[str, Metric]) -> list[list[str]]:
    """The names of layers, those whose inputs have one second moment, the same tensor, together."""
    groups: dict[int, list[str]] = {}
    for name, metric in metrics.items():
        groups.setdefault(id(name if metric.right is None else metric.right), []).append(name)
    return list(groups.values())


def whole_losses(
    weights: Mapping[str, torch.Tensor], metrics: Mapping[str, Metric], forms: Mapping[str, Form]
) -> Losses:
    """What matrices fed by one tensor lose whole in each of `forms`, by `NAME/WORD`."""
    found: Losses = {}
    names = list(weights)
    stacked, C = torch.cat(list(weights.values())), metrics[names[0]].right
    for kind in dict.fromkeys(type(form.storage) for form in forms.values()):
        words = [word for word, form in forms.items() if type(form.storage) is kind]
        for index, errors in kind.errors([forms[word].storage for word in words], stacked, C):
            heights = [len(W) for W in weights.values()]
            parts = [None] * len(names) if errors is None else torch.split(errors.float(), heights)
            for name, error in zip(names, parts, strict=True):
                lost = 0.0 if error is None else loss(error, metrics[name])
                found[f"{name}/{words[index]}"] = torch.tensor([lost], dtype=torch.float64)
    return found


def lost(losses: Losses, word: str, rank: int | None) -> float:
    """The share of a matrix's weighted energy that it loses in the form `word`, at `rank` where that has ranks."""
    return float(losses[word][rank or 0]) / max(float(losses[ENERGY]), 1e-300)
