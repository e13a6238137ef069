"""The engine, visible in `compress`: statistics, factorisation, allocation, truncation, update, training, storage."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Ranks, Whole, allocate, fixed_ranks
from svdexp.cache import Cache
from svdexp.compression import Compression
from svdexp.errors import UserError
from svdexp.job import Job
from svdexp.method import Method
from svdexp.models.elastic import Elastic, Recipe
from svdexp.models.structure import Layer, Targets, find_layers
from svdexp.schema import Traversal
from svdexp.storage import ElasticStorage
from svdexp.timing import StageClock


def compress(
    model: PreTrainedModel,
    windows: torch.Tensor,
    method: Method,
    ratio: float,
    *,
    targets: Targets | None = None,
    cache: Cache | None = None,
    clock: StageClock | None = None,
    seed: int = 0,
    texts: Mapping[str, torch.Tensor] | None = None,
) -> Compression:
    """Compress `model` in place; where several processes share the run, each compresses its own copy.

    Args:
        model: any causal language model whose blocks hold linear layers, on any device.
        windows: calibration token ids, (N, L).
        method: the stages.
        ratio: kept fraction of the targeted layers' stored bits, in (0, 1].
        targets: which layers, and the ranks that are fixed; by default all linear layers of the blocks, and none.
        cache: where finished stages are found and left; in memory by default.
        clock: collects seconds per stage.
        seed: of what is drawn at random.
        texts: by the name of a training, token ids (N, L) that it learns from instead of the calibration windows.

    Raises:
        UserError: unsupported module, non-finite values, a ratio too small for the layers' shapes, or several
            processes without a cache on disk.
    """
    layers, budget, fixed = plan(model, method, ratio, targets or Targets())
    job = Job(model, windows, method, layers, cache or Cache(), clock or StageClock(), seed, texts or {})
    dense = method.traversal is Traversal.dense
    weighting = method.weighting
    parts = job.from_dense_model(weighting) if weighting and (dense or method.allocation.needs_spectra) else None
    # all of them now, because truncation changes the model that they are computed from
    spectra = job.spectra(parts) if parts else {}
    with job.clock("allocation"):
        ranks = allocate(method.allocation, budget, fixed, job.evidence(spectra, parts))
    if weighting and not dense:
        parts = job.from_compressed_path(weighting, ranks)
    done = job.truncate(parts, ranks)
    if isinstance(method.storage, ElasticStorage):
        recipe = Recipe.of(method.allocation, ratio, windows.numel(), list(budget.shapes))
        done = replace(done, elastic=Elastic(recipe, job.components))
    return done


def plan(model: PreTrainedModel, method: Method, ratio: float, targets: Targets) -> tuple[list[Layer], Budget, Ranks]:
    """The layers to compress, the budget of all of them, and the ranks among them that `targets` fixes.

    Raises:
        UserError: what cannot be compressed, and fixed ranks that do not fit a layer or the budget.
    """
    layers = find_layers(model, targets)
    budget = Budget(ratio, {x.name: (x.m, x.n) for x in layers}, method.storage)
    fixed = fixed_ranks(targets.ranks, budget.shapes)
    if fixed and isinstance(method.storage, ElasticStorage):
        raise UserError("storage=elastic chooses all ranks again for every ratio; leave targets.ranks out")
    rest = budget.without(fixed)
    if isinstance(method.allocation, Whole):
        if any(fixed.values()):
            raise UserError("targets.ranks: method.allocation=Whole makes no factors; choose another method")
        method.allocation.require_room(rest)
    return layers, budget, fixed
