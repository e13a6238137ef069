"""Predicted losses, brought to what was measured: the sensitivities of LEMS (ICML 2026, openreview IjIgNPFuCt).

    loss_k(r) = s_k tail_k(r),    s_k = KL_k / tail_k(r_k)

KL_k is the divergence of the model's predictions, in nats per token, when matrix k alone is cut to the rank r_k that
takes a small share of its bits, measured on a few short calibration windows. The shape of each matrix's loss stays that
of its spectrum, and its height is measured, so the losses of all matrices are in one unit whatever the weighting.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import nn

from svdexp.allocation.budget import Aligned, Budget, Evidence
from svdexp.allocation.divergence import Divergences
from svdexp.allocation.spectra import tails
from svdexp.models.matrices import Ranks
from svdexp.models.pictures import is_picture
from svdexp.models.residency import blocks_of, residency_of
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require, require_positive
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured(Aligned):
    """The options of an allocation by predicted losses: these may be scaled to what is measured.

    Attributes:
        measured: the share of its bits to which each matrix is cut; None measures nothing and scales nothing.
        windows: how many calibration windows it is measured on.
        length: how many of their tokens.
        depth: the first block's losses count 1 + depth times what is measured, the last block's, and those outside
            the blocks, once, and those between in proportion.
    """

    measured: float | None = None
    windows: int = 2
    length: int = 256
    depth: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measured is not None:
            require(0 < self.measured < 1, f"method.allocation.measured must be in (0, 1), not {self.measured:g}")
        require_positive("method.allocation.windows", self.windows)
        require(self.length > 1, f"method.allocation.length must be at least 2, not {self.length}")
        require(0 <= self.depth < math.inf, f"method.allocation.depth must be at least 0, not {self.depth:g}")
        idle = self.depth > 0 and self.measured is None
        require(not idle, "method.allocation.depth has no effect without method.allocation.measured")

    def cost(self, workload: Workload) -> Work:
        """A short pass per layer, through its block and those behind it, and one of the dense model."""
        if self.measured is None:
            return Work()
        windows, length = min(self.windows, workload.windows), min(self.length, workload.length)
        groups = list(dict.fromkeys(layer.group for layer in workload.layers))
        behind = [1 - groups.index(layer.group) / len(groups) for layer in workload.layers]
        passes = [workload.forward(windows, length=length, share=share) for share in (1.0, *behind)]
        total, dense = sum(passes, Work()), 4 * windows * length * workload.vocabulary  # its log-probabilities stay
        return replace(total, bytes=total.bytes + dense)


def measure(allocation: object, budget: Budget, evidence: Evidence) -> Evidence:
    """`evidence` with the spectra of the layers in `budget` scaled, if `allocation` asks for that."""
    if not isinstance(allocation, Measured) or allocation.measured is None or not budget.shapes:
        return evidence
    budget = budget.aligned(allocation.rank_align)
    ranks: Ranks = {name: budget.rank_at(name, allocation.measured) for name in budget.shapes}
    cut = {name: rank for name, rank in ranks.items() if rank is not None}
    predicted = {name: float(tails(evidence.spectra[name])[rank]) for name, rank in cut.items()}
    found = scales(predicted, divergences(allocation, evidence, cut, budget.rank_align), list(budget.shapes))
    blocks = list(blocks_of(evidence.model))
    found = {name: scale * depth_factor(name, blocks, allocation.depth) for name, scale in found.items()}
    log.info("measured losses are %.3g to %.3g times those predicted", min(found.values()), max(found.values()))
    return replace(evidence, spectra=scaled(evidence.spectra, found), scales=found)


def scaled(spectra: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Spectra whose tails, which are squares, are those of `spectra` times `scales`, for the layers that have one."""
    return {name: x.double() * scales[name] ** 0.5 if name in scales else x for name, x in spectra.items()}


def scales(predicted: Mapping[str, float], measured: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """The factor for each of the layers in `names`: measured / predicted.

    Where nothing moved (an expert that no token was routed to), nothing was predicted, or nothing can be cut, it is
    the others' median.
    """
    found = {name: measured[name] / predicted[name] for name in predicted if measured[name] > 0 < predicted[name]}
    return dict.fromkeys(names, median(found.values()) if found else 1.0) | found


def depth_factor(name: str, blocks: Sequence[str], depth: float) -> float:
    """LEMS's factor for the layer called `name`: 1 + depth · (the share of `blocks` that come behind its own)."""
    behind = next((len(blocks) - 1 - i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), 0)
    return 1 + depth * behind / max(len(blocks) - 1, 1)


def divergences(allocation: Measured, evidence: Evidence, ranks: Mapping[str, int], align: int) -> dict[str, float]:
    """Of the model with one layer at its rank in `ranks`, nats per token; what earlier runs measured is on the shelf.

    Raises:
        NotFiniteError: with one of them the model gives no numbers.
    """
    windows = evidence.windows[: allocation.windows]
    if not is_picture(windows).any():
        windows = windows[:, : allocation.length]
    about = {"share": allocation.measured, "windows": list(windows.shape), "align": align}
    shelf = evidence.shelf("divergence", **about, **evidence.made_with)
    known = {name: shelf.get(name) for name in ranks}
    missing = Processes().agree([name for name, found in known.items() if found is None])
    if missing:
        layers = {name: partial(evidence.truncated, name, ranks[name]) for name in missing}
        measure_missing(Divergences(evidence.model, windows), layers, shelf)
        Processes().wait()
    found = {name: known[name] or shelf.get(name) for name in ranks}
    return {name: float(tensors["divergence"]) for name, tensors in found.items() if tensors is not None}


def measure_missing(meter: Divergences, layers: Mapping[str, Callable[[], nn.Module]], shelf: Shelf) -> None:
    """Put what `meter` says of each of the layers on the shelf, one by one; several processes share them.

    Of a streamed model all at once, for each of its blocks is then read once.
    """
    whole = residency_of(meter.model) is None
    mine = list(Processes().share(list(layers)))
    shares = [[name] for name in mine] if whole else [mine]
    for names in progress(shares, "divergence") if whole else shares:
        for name, value in meter({name: layers[name] for name in names}, None if whole else "divergence").items():
            shelf.put(name, {"divergence": torch.tensor(value, dtype=torch.float64)})
