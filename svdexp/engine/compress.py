"""The engine, visible in `compress`: statistics, factorisation, allocation, truncation, update, training, storage."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget
from svdexp.allocation.forms import said
from svdexp.calibration.usage import left_dense
from svdexp.checkpoints.checkpoint import label
from svdexp.checkpoints.elastic import Elastic, Recipe
from svdexp.engine import steps
from svdexp.engine.benches import Decomposed, decomposed, dense_benches, dense_statistics, to_decompose
from svdexp.engine.choice import allocated
from svdexp.engine.job import Job, begin
from svdexp.engine.losses import lost
from svdexp.engine.plan import Plan, plan, without
from svdexp.engine.result import Compression
from svdexp.engine.search import Measure, Search, TooSmallError, require_searchable, search
from svdexp.engine.size import NearDense, Size
from svdexp.method import Method
from svdexp.models.matrices import Ranks
from svdexp.models.modes import as_loaded, recordable
from svdexp.models.structure import Targets
from svdexp.runtime.clock import IdleClock, StageClock
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal

log = logging.getLogger(__name__)


@as_loaded
def compress(
    model: PreTrainedModel,
    windows: torch.Tensor,
    method: Method,
    ratio: Size,
    *,
    targets: Targets | None = None,
    cache: Cache | None = None,
    clock: StageClock | None = None,
    seed: int = 0,
    texts: Mapping[str, torch.Tensor] | None = None,
    elastic: bool = False,
    planned: Plan | None = None,
    weights: str | None = None,
    perplexity: Measure | None = None,
) -> Compression:
    """Compress `model` in place; where several processes share the run, each compresses its own copy.

    It may be in training mode and require gradients: that is set aside meanwhile, and holds for the new layers too.
    Afterwards it is of the class that has such layers, and its config says which: what its `save_pretrained` writes is
    loaded by `svdexp.load`, and by transformers with trust_remote_code=True.

    Args:
        model: any causal language model whose blocks hold linear layers, on any device.
        windows: calibration token ids, (N, L).
        method: the stages.
        ratio: kept fraction of the targeted layers' stored bits, in (0, 1]; how large the whole model may be; or how
            near to the dense one, for which sizes are tried.
        targets: which layers, and the ranks that are fixed; by default all linear layers of the blocks, and none.
        cache: where finished stages are found and left; in memory by default.
        clock: collects seconds per stage.
        seed: of what is drawn at random.
        texts: by the name of a training, token ids (N, L) that it learns from instead of the calibration windows.
        elastic: also keep what `checkpoint.save` adds for every lower ratio, in memory: about the dense model's size.
        planned: the plan of these arguments, where it was made already.
        weights: the model's fingerprint, where it was taken already.
        perplexity: of the model on the text of a `NearDense`, which is wanted for that.

    Raises:
        UserError: unsupported module, non-finite values, a ratio too small for the layers' shapes, windows too short
            for a training, several processes without a cache on disk, or a method that cannot be `elastic`.
    """
    if isinstance(ratio, NearDense):
        require_searchable(method)
    windows, texts = recordable(windows), {name: recordable(tokens) for name, tokens in (texts or {}).items()}
    check_windows(method, windows, texts)
    targets, clock = targets or Targets(), clock or StageClock()
    if elastic:
        method.require_elastic(targets.ranks)
    planned = planned or plan(model, method, ratio, targets)
    with clock("usage"):  # a stage of its own: no cache can spare it
        idle = Processes().agree(left_dense(model, planned.layers, windows, method.needs_gradients))
    layers, budget, fixed, _, left = planned = without(planned, idle, model, method, ratio, targets)
    for warning in planned.warnings:
        log.warning("%s", warning)
    job = begin(model, windows, method, layers, cache or Cache(), clock, seed, texts, elastic, weights)
    dense = Decomposed({}, {}, {})
    found: Search | None = None
    if method.weighting and (method.traversal is Traversal.dense or method.allocation.needs_spectra):
        source = dense_statistics(job)
        benches = dense_benches(job, method.weighting, source)
        # all of them now, because truncation changes the model that they are computed from
        for bench in benches.values():
            for group in progress(to_decompose(job, bench), "decomposition"):
                bench.decompose(group)
        dense = decomposed(job, benches, source)
        if Processes().main:
            source.forget_states()
    if isinstance(ratio, NearDense):
        assert perplexity is not None, "a size near the dense model's wants what measures it"
        with clock("search"):
            found = searched(job, dense, budget, fixed, ratio, perplexity)
        budget = replace(budget, ratio=found.ratio)
    job, ranks, curves, forms, evidence, benches, spectra = allocated(job, dense, budget, fixed)
    losses = dense.losses
    before = steps.stored(job)
    replaced = {matrix: matrix.layer(model) for matrix in layers} if method.trains_stored else {}
    done = steps.truncate(job, benches, ranks, spectra)
    trained = steps.train(job, ranks, done.dense) if method.trains_factors else {}
    with clock("storage"):
        steps.finish(job, ranks)
    trained |= steps.train_stored(job, ranks, replaced) if method.trains_stored else {}
    label(model, ranks)
    recipe = Recipe.of(method.allocation, budget, evidence) if elastic else None
    return Compression(
        layers=layers,
        ratio=budget.ratio,
        ranks=ranks,
        forms={name: said(word, ranks[name]) for name, word in forms.items()},
        errors={name: part.error(ranks[name]) for name, part in done.spectra.items()}
        | {name: lost(losses[name], forms[name], ranks[name]) for name in losses},
        damping={name: float(part.damping.max()) for name, part in done.spectra.items()},
        spectra={name: part.spectrum for name, part in done.spectra.items()},
        dense_bits=sum(before.values()),
        layer_bits=steps.stored(job),
        elastic=Elastic(recipe, done.components) if recipe else None,
        curves=curves,
        training=trained,
        left_dense=left,
        search=found,
    )


def searched(
    job: Job, dense: Decomposed, budget: Budget, fixed: Ranks, wanted: NearDense, perplexity: Measure
) -> Search:
    """The ratio that is near enough to the dense model, which every trial leaves as it was."""
    job = replace(job, clock=IdleClock())

    @contextmanager
    def compressed(ratio: float) -> Iterator[None]:
        try:
            chosen = allocated(job, dense, replace(budget, ratio=ratio), fixed)
        except UserError as error:
            raise TooSmallError(str(error)) from error
        with steps.dense_again(job):
            steps.truncate(chosen.job, chosen.benches, chosen.ranks, chosen.spectra)
            steps.finish(chosen.job, chosen.ranks)
            yield

    return search(wanted, job.model, perplexity, compressed)


def check_windows(method: Method, windows: torch.Tensor, texts: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where calibration `windows` (N, L), or a training's own of `texts`, are too few or too short."""
    own = {f"method.training.{name}": (len(tokens), tokens.shape[1]) for name, tokens in texts.items()}
    method.check_windows((len(windows), windows.shape[1]), own)
