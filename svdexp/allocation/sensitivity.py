"""Ranks by sensitivity: ASVD's training-free rank search (arXiv 2312.05821, §3.3).

Every layer has a sensitivity at each candidate ratio. All (layer, ratio, sensitivity) triples are sorted, and a
threshold is searched by bisection: each layer takes its smallest candidate ratio whose sensitivity is below the
threshold, or stays dense. The search ends at the lowest threshold that meets the budget or, given a perplexity
target, at the highest that meets the target.

The paper's `ppl` is the perplexity with only this layer truncated. `stable_rank` is the reference's cheap
substitute with its sign mended: the reference sorts by −(‖W‖_F² / σ₁²)^½ ρ^0.1, so it cuts matrices of high stable
rank first, whose energy is spread over many components and which therefore lose most. Ours is
(‖W‖_F² / σ₁²)^½ ρ^−0.1, lowest first, on the spectrum of the weighted matrix.

Ours besides: the search keeps the best threshold that was found to be feasible, not the last one looked at; sizes
are the storage's, not nominal; what the threshold leaves of the budget is spent on ranks, most sensitive layers
first; and below the smallest candidate all ranks shrink by one factor.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import ClassVar, NamedTuple

import torch

from svdexp.allocation.budget import Aligned, Budget, Evidence
from svdexp.allocation.spectra import stable_rank
from svdexp.allocation.trial import trial_perplexity
from svdexp.models.matrices import Ranks
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require, require_positive
from svdexp.runtime.progress import progress

log = logging.getLogger(__name__)


class SensitivityMetric(StrEnum):
    """How sensitive a layer is."""

    ppl = "ppl"  # perplexity with only this layer truncated
    stable_rank = "stable_rank"  # how widely the layer's energy is spread


class Candidate(NamedTuple):
    """One layer at one candidate ratio."""

    sensitivity: float
    name: str
    ratio: float


@dataclass(frozen=True)
class Sensitivity(Aligned):
    """The least sensitive cuts first, until the budget or the perplexity target is met.

    Attributes:
        metric: what sensitivity is.
        candidates: kept ratios that are tried for each layer.
        windows: how many calibration windows perplexities are measured on.
        ppl_target: compress as far as the perplexity on those windows stays at or below this; the requested
            ratio is then ignored, and the result says which one was achieved. None: meet the ratio.
    """

    metric: SensitivityMetric = SensitivityMetric.ppl
    candidates: list[float] = field(default_factory=lambda: [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    windows: int = 4
    ppl_target: float | None = None
    needs_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.candidates) and all(0 < ratio < 1 for ratio in self.candidates),
            f"method.allocation.candidates must be kept ratios in (0, 1), not {self.candidates}",
        )
        require_positive("method.allocation.windows", self.windows)
        if self.ppl_target is not None:
            require(self.ppl_target > 1, f"method.allocation.ppl_target must be above 1, not {self.ppl_target:g}")

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """From spectra or trials.

        Raises:
            UserError: the perplexity target is missed before any cut.
        """
        budget = budget.aligned(self.rank_align)
        if self.ppl_target is not None:
            uncut = trial_perplexity(evidence, budget.fixed, evidence.windows[: self.windows])
            require(
                uncut <= self.ppl_target,
                f"method.allocation.ppl_target={self.ppl_target:g} is below the perplexity on the calibration windows "
                f"before any cut, {uncut:.4g}",
            )
        cuts = sorted(self._measure(budget, evidence))
        if self.ppl_target is not None:
            return self._meet_target(budget, evidence, cuts, self.ppl_target)
        return meet_budget(budget, cuts)

    def require_room(self, budget: Budget) -> None:
        """Raise UserError where even the lowest ranks are more than `budget`, if that is what decides."""
        if self.ppl_target is None:
            super().require_room(budget)

    def cost(self, workload: Workload) -> Work:
        """A perplexity per layer and candidate, and those of the bisection for a target."""
        cuts = len(workload.layers) * len(self.candidates)
        trials = cuts if self.metric is SensitivityMetric.ppl else 0
        if self.ppl_target is not None:
            trials += 1 + cuts.bit_length()
        return workload.forward(trials * min(self.windows, workload.windows))

    def _measure(self, budget: Budget, evidence: Evidence) -> list[Candidate]:
        if self.metric is SensitivityMetric.stable_rank:
            spread = {name: math.sqrt(stable_rank(evidence.spectra[name])) for name in budget.shapes}
            return [Candidate(spread[name] * ratio**-0.1, name, ratio) for name in spread for ratio in self.candidates]
        about = {"candidates": self.candidates, "windows": self.windows, "align": budget.rank_align}
        shelf = evidence.shelf("sensitivity", **about, **evidence.made_with)
        cuts = []
        for name in progress(list(budget.shapes), "sensitivity"):
            found = shelf.remember(name, partial(self._trials, budget, evidence, name))
            cuts += [
                Candidate(value, name, ratio)
                for value, ratio in zip(found["perplexity"].tolist(), self.candidates, strict=True)
            ]
        return cuts

    def _trials(self, budget: Budget, evidence: Evidence, name: str) -> dict[str, torch.Tensor]:
        """Perplexities with only the layer called `name` truncated, one per candidate."""
        windows = evidence.windows[: self.windows]
        values = [trial_perplexity(evidence, {name: budget.rank_at(name, ratio)}, windows) for ratio in self.candidates]
        return {"perplexity": torch.tensor(values, dtype=torch.float64)}

    def _meet_target(self, budget: Budget, evidence: Evidence, cuts: Sequence[Candidate], target: float) -> Ranks:
        def fails(count: int) -> bool:
            ranks = budget.fixed | ranks_of(budget, cuts[:count])
            value = trial_perplexity(evidence, ranks, evidence.windows[: self.windows])
            log.info("perplexity %.4g on the calibration windows at %d of %d cuts", value, count, len(cuts))
            return value > target

        # Perplexity need not grow with every cut; the count returned is one that was measured to meet the target.
        return ranks_of(budget, cuts[: bisect_left(range(1, len(cuts) + 1), True, key=fails)])


def meet_budget(budget: Budget, cuts: Sequence[Candidate]) -> Ranks:
    """The fewest of the sorted `cuts` that meet the budget; what they leave goes to the most sensitive layers."""
    counts = range(len(cuts) + 1)
    # Every further cut makes the model smaller or leaves it alone, so bisection is exact.
    count = bisect_left(counts, True, key=lambda count: budget.spent(ranks_of(budget, cuts[:count])) <= budget.total)
    if count == len(counts):
        return budget.fit({name: budget.ladder(name).real_rank(bits) for name, bits in _smallest(budget, cuts).items()})
    ranks = ranks_of(budget, cuts[:count])
    chosen = _taken(cuts[:count])
    return budget.fill(ranks, sorted(chosen, key=lambda name: chosen[name].sensitivity, reverse=True))


def ranks_of(budget: Budget, cuts: Sequence[Candidate]) -> Ranks:
    """Each layer at the smallest ratio among `cuts`, or dense where there is none."""
    taken = _taken(cuts)
    return {name: budget.rank_at(name, taken[name].ratio) if name in taken else None for name in budget.shapes}


def _taken(cuts: Sequence[Candidate]) -> dict[str, Candidate]:
    taken: dict[str, Candidate] = {}
    for cut in cuts:
        if cut.name not in taken or cut.ratio < taken[cut.name].ratio:
            taken[cut.name] = cut
    return taken


def _smallest(budget: Budget, cuts: Sequence[Candidate]) -> dict[str, float]:
    return {name: cut.ratio * budget.dense(name) for name, cut in _taken(cuts).items()}
