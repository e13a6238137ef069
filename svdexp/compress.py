"""The engine: statistics → factorisation → allocation → storage, in one visible function."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import Allocation, Budget, Evidence, Ranks
from svdexp.cache import Cache, fingerprint, model_fingerprint
from svdexp.calibration import BlockwiseStatistics, DenseStatistics
from svdexp.factorisation import Decomposition, Weighting, Workbench
from svdexp.models.structure import Layer, Targets, find_layers, replace, weight_of
from svdexp.progress import progress
from svdexp.schema import Traversal
from svdexp.storage import Storage, stored_bits
from svdexp.timing import StageClock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """A compression method: which error counts, who gets which rank, and how factors are kept."""

    name: str
    weighting: Weighting
    allocation: Allocation
    storage: Storage
    traversal: Traversal = Traversal.dense


@dataclass(frozen=True)
class Compression:
    """What `compress` did to the model it was given.

    Attributes:
        ranks: per layer; None stayed dense.
        errors: per layer, the share of the weighted energy ‖L W R‖² that truncation removed, in [0, 1].
        damping: per layer, the largest multiple of the identity that was added to a second moment.
        dense_bits, bits: all targeted layers before and after, counted from their tensors.
    """

    ranks: Ranks
    errors: dict[str, float]
    damping: dict[str, float]
    dense_bits: int
    bits: int

    @property
    def achieved_ratio(self) -> float:
        """The kept fraction of the targeted layers' bits."""
        return self.bits / self.dense_bits


def compress(
    model: PreTrainedModel,
    windows: torch.Tensor,
    method: Method,
    ratio: float,
    *,
    targets: Targets | None = None,
    cache: Cache | None = None,
    clock: StageClock | None = None,
) -> Compression:
    """Compress `model` in place.

    Args:
        model: any causal language model whose blocks hold linear layers, on any device.
        windows: calibration token ids, (N, L).
        method: the stages.
        ratio: kept fraction of the targeted layers' stored bits, in (0, 1].
        targets: which layers; by default all linear layers of the blocks.
        cache: where finished stages are found and left; in memory by default.
        clock: collects seconds per stage.

    Raises:
        UserError: unsupported module, non-finite values, or a ratio too small for the layers' shapes.
    """
    cache, clock = cache or Cache(), clock or StageClock()
    layers = find_layers(model, targets or Targets())
    group_of = {layer.name: layer.group for layer in layers}
    groups = list(dict.fromkeys(group_of.values()))
    source = {
        "model": model_fingerprint(model),
        "windows": fingerprint({"": windows}),
        "layers": [x.name for x in layers],
    }
    budget = Budget(ratio, {x.name: (x.m, x.n) for x in layers}, method.storage, _number_bits(model, layers))
    needs = method.weighting.needs

    spectra: dict[str, torch.Tensor] = {}
    dense = method.traversal is Traversal.dense
    if dense or method.allocation.needs_spectra:
        shelves = {need: cache.shelf("statistics", statistic=need, **source) for need in needs}
        statistics = DenseStatistics(model, layers, windows, shelves)
        shelf = cache.shelf("decompositions", weighting=repr(method.weighting), **source)
        bench = Workbench(model, layers, statistics, method.weighting, shelf, clock)
        for group in progress(groups, "decomposition"):
            spectra |= {name: part.spectrum for name, part in bench.decompositions(group).items()}

    def truncated(name: str, rank: int) -> nn.Module:
        return low_rank_layer(model, bench.decompositions(group_of[name])[name], name, rank, method.storage)

    with clock("allocation"):
        ranks = method.allocation(budget, Evidence(model, windows, spectra, truncated))
    if not dense:
        shelf = cache.shelf("blockwise", method=repr(method), ranks=ranks, **source)
        compressed_path = BlockwiseStatistics(model, layers, windows, needs)
        bench = Workbench(model, layers, compressed_path, method.weighting, shelf, clock, ranks)

    dense_bits = sum(stored_bits(model.get_submodule(layer.name)) for layer in layers)
    parts: dict[str, Decomposition] = {}
    for group in progress(groups, "truncation"):
        for name, part in bench.decompositions(group).items():
            with clock("storage"):
                install(model, name, part, ranks[name], method.storage)
            parts[name] = part.keep(0)
    return Compression(
        ranks=ranks,
        errors={name: part.error(ranks[name]) for name, part in parts.items()},
        damping={name: float(part.damping.max()) for name, part in parts.items()},
        dense_bits=dense_bits,
        bits=sum(stored_bits(model.get_submodule(layer.name)) for layer in layers),
    )


def install(model: nn.Module, name: str, part: Decomposition, rank: int | None, storage: Storage) -> None:
    """Put the truncated layer in the dense layer's place; None leaves the dense layer."""
    if rank is not None:
        replace(model, name, low_rank_layer(model, part, name, rank, storage))


def low_rank_layer(model: nn.Module, part: Decomposition, name: str, rank: int, storage: Storage) -> nn.Module:
    """The layer that takes the place of the dense one called `name`."""
    old: Any = model.get_submodule(name)
    return storage.layer(part.truncate(rank), old.bias, weight_of(old))


def _number_bits(model: nn.Module, layers: Sequence[Layer]) -> int:
    """Bits per number of the dense layers; the budget is counted in them."""
    return 8 * max(weight_of(model.get_submodule(layer.name)).element_size() for layer in layers)
