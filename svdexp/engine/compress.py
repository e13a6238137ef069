"""The engine, visible in `compress`: statistics, factorisation, allocation, truncation, update, training, storage."""

import logging
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from svdexp.allocation import allocate, measure
from svdexp.allocation.forms import said
from svdexp.calibration.usage import left_dense
from svdexp.checkpoints.checkpoint import label
from svdexp.checkpoints.elastic import Elastic, Recipe
from svdexp.engine import steps
from svdexp.engine.losses import lost
from svdexp.engine.plan import Plan, plan, without
from svdexp.engine.result import Compression
from svdexp.engine.size import WholeModel
from svdexp.method import Method
from svdexp.models.modes import as_loaded, recordable
from svdexp.models.structure import Targets
from svdexp.runtime.clock import StageClock
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
    ratio: float | WholeModel,
    *,
    targets: Targets | None = None,
    cache: Cache | None = None,
    clock: StageClock | None = None,
    seed: int = 0,
    texts: Mapping[str, torch.Tensor] | None = None,
    elastic: bool = False,
    planned: Plan | None = None,
    weights: str | None = None,
) -> Compression:
    """Compress `model` in place; where several processes share the run, each compresses its own copy.

    It may be in training mode and require gradients: that is set aside meanwhile, and holds for the new layers too.
    Afterwards it is of the class that has such layers, and its config says which: what its `save_pretrained` writes is
    loaded by `svdexp.load`, and by transformers with trust_remote_code=True.

    Args:
        model: any causal language model whose blocks hold linear layers, on any device.
        windows: calibration token ids, (N, L).
        method: the stages.
        ratio: kept fraction of the targeted layers' stored bits, in (0, 1]; or how large the whole model may be.
        targets: which layers, and the ranks that are fixed; by default all linear layers of the blocks, and none.
        cache: where finished stages are found and left; in memory by default.
        clock: collects seconds per stage.
        seed: of what is drawn at random.
        texts: by the name of a training, token ids (N, L) that it learns from instead of the calibration windows.
        elastic: also keep what `checkpoint.save` adds for every lower ratio, in memory: about the dense model's size.
        planned: the plan of these arguments, where it was made already.
        weights: the model's fingerprint, where it was taken already.

    Raises:
        UserError: unsupported module, non-finite values, a ratio too small for the layers' shapes, windows too short
            for a training, several processes without a cache on disk, or a method that cannot be `elastic`.
    """
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
    job = steps.begin(model, windows, method, layers, cache or Cache(), clock, seed, texts, elastic, weights)
    dense, weighting = method.traversal is Traversal.dense, method.weighting
    benches: steps.Benches = {}
    spectra, losses = {}, {}
    if weighting and (dense or method.allocation.needs_spectra):
        source = steps.dense_statistics(job)
        benches = steps.dense_benches(job, weighting, source)
        # all of them now, because truncation changes the model that they are computed from
        for bench in benches.values():
            for group in progress(steps.to_decompose(job, bench), "decomposition"):
                bench.decompose(group)
        if method.storage.menu and method.allocation.needs_spectra:
            losses = steps.measured(job, steps.loss_bench(job, weighting, source, benches))
        elif not method.storage.menu:
            spectra = steps.spectra(job, benches[method.storage.split])
    with clock("allocation"):
        evidence = steps.evidence(job, benches.get(method.storage.split), spectra, losses)
        evidence = measure(method.allocation, budget.without(fixed), evidence)
        ranks, curves, forms = allocate(method.allocation, budget, fixed, evidence)
    job = job.choosing(forms)
    if weighting and not dense:
        benches, spectra = {method.storage.split: steps.blockwise_bench(job, weighting, ranks)}, {}
    before = steps.stored(job)
    done = steps.truncate(job, benches, ranks, spectra)
    trained = steps.train(job, ranks, done.dense) if method.training else {}
    with clock("storage"):
        steps.finish(job, ranks)
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
    )


def check_windows(method: Method, windows: torch.Tensor, texts: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where calibration `windows` (N, L), or a training's own of `texts`, are too few or too short."""
    own = {f"method.training.{name}": (len(tokens), tokens.shape[1]) for name, tokens in texts.items()}
    method.check_windows((len(windows), windows.shape[1]), own)
