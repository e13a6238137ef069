"""The engine, visible in `compress`: statistics, factorisation, allocation, truncation, update, training, storage."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Aligned, Budget, Foreseen, Whole, allocate, fixed_ranks
from svdexp.calibration.usage import left_dense
from svdexp.checkpoints.checkpoint import label
from svdexp.checkpoints.elastic import Elastic, Recipe
from svdexp.data.reads import check_windows_of
from svdexp.engine.result import Compression
from svdexp.engine.steps import Job
from svdexp.method import Method
from svdexp.models.behaviour import require_next_token, require_replayable
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.modes import as_loaded, recordable
from svdexp.models.structure import Targets, abbreviated, find_matrices, matches, other_stacks, shared_matrices
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What a model, a method and a ratio come to, before anything is computed.

    Attributes:
        layers: the layers to compress.
        budget: of all of them.
        fixed: the ranks among them that the targets fix.
        notes: sentences on what the user may not expect.
        left_dense: what the targets select and the structure rules out, reason → names.
    """

    layers: list[Matrix]
    budget: Budget
    fixed: Ranks
    notes: list[str]
    left_dense: dict[str, list[str]]


@as_loaded
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
    elastic: bool = False,
) -> Compression:
    """Compress `model` in place; where several processes share the run, each compresses its own copy.

    It may be in training mode and require gradients: that is set aside meanwhile, and holds for the new layers too.
    Afterwards it is of the class that has such layers, and its config says which: what its `save_pretrained` writes is
    loaded by `svdexp.load`, and by transformers with trust_remote_code=True.

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
        elastic: also keep what `checkpoint.save` adds for every lower ratio, in memory: about the dense model's size.

    Raises:
        UserError: unsupported module, non-finite values, a ratio too small for the layers' shapes, windows too short
            for a training, several processes without a cache on disk, or a method that cannot be `elastic`.
    """
    windows, texts = recordable(windows), {name: recordable(tokens) for name, tokens in (texts or {}).items()}
    check_windows(method, windows, texts)
    targets, clock = targets or Targets(), clock or StageClock()
    if elastic:
        method.require_elastic(targets.ranks)
    layers, budget, fixed, notes, left = plan(model, method, ratio, targets)
    with clock("usage"):  # a stage of its own: no cache can spare it
        idle = Processes().agree(left_dense(model, layers, windows, method.needs_gradients))
    if idle:
        layers, budget, fixed = without(layers, idle, method, ratio, targets)
        left |= idle
    for note in [*notes, *said(left)]:
        log.warning("%s", note)
    job = Job(model, windows, method, layers, cache or Cache(), clock, seed, texts, elastic)
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
    if elastic:
        recipe = Recipe.of(method.allocation, ratio, windows.numel(), list(budget.shapes))
        done = replace(done, elastic=Elastic(recipe, job.components))
    label(model, done.ranks)
    return replace(done, left_dense=left)


def check_windows(method: Method, windows: torch.Tensor, texts: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where calibration `windows` (N, L), or a training's own of `texts`, are too few or too short."""
    own = {f"method.training.{name}": tokens for name, tokens in texts.items()}
    for knob, part in method.parts.items():
        check_windows_of(part, *own.get(knob, windows).shape)


def plan(model: PreTrainedModel, method: Method, ratio: float, targets: Targets) -> Plan:
    """The plan for `model`, which may be on the meta device.

    Raises:
        UserError: what cannot be compressed, fixed ranks that do not fit a layer or the budget, and a budget that the
            shapes alone rule out.
    """
    if hasattr(model.config, "svdexp"):
        raise UserError("model: it is compressed already; export it with format=dense first, or load the dense one")
    layers = find_matrices(model, targets)
    require_next_token(model)
    if method.replay:
        require_replayable(model, *method.replay)
    budget, fixed = shares(layers, method, ratio, targets)
    notes = method.allocation.unaligned(budget.without(fixed)) if isinstance(method.allocation, Aligned) else []
    left = shared_matrices(model, targets) | other_stacks(model, targets)
    return Plan(layers, budget, fixed, notes, left)


def shares(layers: Sequence[Matrix], method: Method, ratio: float, targets: Targets) -> tuple[Budget, Ranks]:
    """The budget of `layers`, and the ranks among them that `targets` fixes.

    Raises:
        UserError: fixed ranks that do not fit a layer or the budget, and a budget that the shapes alone rule out.
    """
    budget = Budget(ratio, {x.name: (x.m, x.n) for x in layers}, method.storage)
    fixed = fixed_ranks(targets.ranks, budget.shapes)
    rest = budget.without(fixed)
    if isinstance(method.allocation, Whole) and any(fixed.values()):
        raise UserError("targets.ranks: method.allocation=Whole makes no factors; choose another method")
    if rest.shapes and isinstance(method.allocation, Foreseen):
        method.allocation.require_room(rest)
    return budget, fixed


def without(
    layers: Sequence[Matrix], idle: Mapping[str, Sequence[str]], method: Method, ratio: float, targets: Targets
) -> tuple[list[Matrix], Budget, Ranks]:
    """The plan without layers that do not work as linear ones: `ratio` then counts the others alone.

    Raises:
        UserError: there are no others, or as `shares`.
    """
    gone = {name for names in idle.values() for name in names}
    rest = [layer for layer in layers if layer.name not in gone]
    if not rest:
        raise UserError(f"no layer to compress is left: {'; '.join(said(idle))}")
    # a pattern that fixed ranks of these alone has nothing to fix any more
    ranks = {key: rank for key, rank in targets.ranks.items() if any(matches(layer.name, [key]) for layer in rest)}
    return rest, *shares(rest, method, ratio, replace(targets, ranks=ranks))


def said(left: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each reason why layers stay dense."""
    kept = {reason: abbreviated(names) for reason, names in left.items()}
    return [f"left dense, and not counted in ratio: {names}, which {reason}" for reason, names in kept.items()]
