"""One run, top-down: texts → model → dense evaluation → compress → evaluation → save → record."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.cells.cell import in_sweep
from svdexp.cells.identity import identity_of
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import resolve_device
from svdexp.checkpoints.verification import verify_checkpoint
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.engine.result import Compression
from svdexp.engine.size import NearDense
from svdexp.estimate.disk import shortage
from svdexp.estimate.forecast import forecast, this_machine
from svdexp.evaluation import continuations, evaluate, protocols
from svdexp.export.origin import copy_texts, origin
from svdexp.export.publish import describe
from svdexp.method import Method, build, build_method
from svdexp.models.pictures import showing
from svdexp.models.structure import Targets
from svdexp.record import RESULTS, Results
from svdexp.record import results as keys
from svdexp.runs.checks import check_inputs
from svdexp.runs.inputs import calibration_bos, measured_on, read, size_of
from svdexp.runs.residency import room_for_blocks, skeleton_to_stream
from svdexp.runtime.clock import StageClock, forget_peak
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.model_names import CHECKPOINT
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Cache
from svdexp.schema import Config, Save
from svdexp.tracking import Findings, NoTracker, Telling, commit, layer_rows, narrate, record, show, tracked

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Results | None:
    """Carry out one experiment; leaves ranks.json, layers.json, checkpoint/ and results.json in `run_dir`.

    And forms.json where there was a choice of forms.

    Of several processes that share the run the main one does so, and only it has results.

    Raises:
        UserError: anything the user can mend; raised before the model is loaded where possible.
    """
    commit()  # of the code that is in memory now
    method, tracker = build_method(config), build(config.tracker, "tracker")
    device = resolve_device(config.device)
    check_inputs(config, method)
    cell = identity_of(config)  # of the files that are read now
    if not Processes().main:
        tracker = NoTracker()
    skeleton = skeleton_to_stream(config, method, size_of(config), device)
    with tracked(tracker, config, run_dir, cell) as telling, room_for_blocks(run_dir) as blocks, ExitStack() as stack:
        streamed = Streamed(skeleton, blocks) if skeleton else None
        return experiment(config, method, device, run_dir, telling, cell, stack, streamed)


class Streamed(NamedTuple):
    """What it takes to stream a model: it without weights, and a folder for blocks that were changed."""

    skeleton: PreTrainedModel
    blocks: Path


def experiment(
    config: Config,
    method: Method,
    device: torch.device,
    run_dir: Path,
    telling: Telling,
    cell: str,
    stack: ExitStack,
    streamed: Streamed | None = None,
) -> Results | None:
    """`run`, after what can be checked at once; the tracker is told of stages as they end, and of what was found.

    What shall last as long as the model goes on the stack.
    """
    main, prompts = Processes().main, config.eval.prompts
    torch.manual_seed(config.seed)
    cache = Cache(Path(config.cache) if config.cache else None)
    forget_peak()
    story = narrate(method, config.save, searches=config.ppl is not None)
    clock = StageClock(telling.stage, began=story.begins)

    with clock("load"):
        model, weights, tokenizer, windows, lessons, texts, exams, viewer = read(
            config, method, device, streamed and streamed.blocks
        )
    pictures = viewer.pictures if viewer else {}
    stack.enter_context(showing(model, pictures))
    targets, shapes = Targets(**vars(config.targets)), streamed.skeleton if streamed else model
    size = size_of(config)
    planned = plan(shapes, method, size, targets)  # refuses what cannot be compressed
    layers, budget, fixed, *_ = planned
    counts = [len(part) for part in texts.values()]
    machine = this_machine(device, model.dtype, layers, config.calibration.seq_len)
    found = forecast(config, method, shapes, layers, budget, fixed, counts, machine, bool(streamed))
    story.expect(found)
    if lacking := shortage(found.disk, config.cache, run_dir):
        log.warning("%s", lacking)

    with clock("evaluate_dense"):
        dense = evaluate(model, texts, config, cache, "dense", exams, tokenizer, weights, routed=True)
        dense_says = continuations(model, tokenizer, prompts, config.eval.bos, viewer) if main else []
    compression = compress(
        model,
        windows,
        method,
        size,
        targets=targets,
        cache=cache,
        clock=clock,
        seed=config.seed,
        texts=lessons,
        elastic=config.save is Save.elastic,
        planned=planned,
        weights=weights,
        perplexity=measured_on(texts[size.text], size.text, config.eval.batch_size, cache)
        if isinstance(size, NearDense)
        else None,
    )
    if main:
        write_atomically(run_dir / "ranks.json", json.dumps(compression.ranks, indent=1))
        if compression.forms:
            write_atomically(run_dir / "forms.json", json.dumps(compression.forms, indent=1))
        write_atomically(run_dir / "layers.json", json.dumps(layer_rows(compression), indent=1))
    with clock("evaluate"):
        compressed = evaluate(model, texts, config, cache, "compressed", exams, tokenizer)
        if not main:
            return None
        compressed_says = continuations(model, tokenizer, prompts, config.eval.bos, viewer)
    compressed |= keys.PROTOCOL.says(protocols(texts))
    if config.save is not Save.none:
        with clock("save"):
            checkpoint.save(model, tokenizer, run_dir / CHECKPOINT, compression.ranks, compression.elastic)
            trusted = config.model.trust_remote_code
            compressed |= verify_checkpoint(run_dir / CHECKPOINT, model, windows[:1], trusted, pictures)

    story.ends(clock.seconds)
    results = record(config, run_dir, dense, compressed, compression, clock, model, weights) | {
        **keys.CELL.says(cell),
        **keys.TRACKER_URL.says(telling.url),
        **keys.CALIBRATION_BOS.says(calibration_bos(config, tokenizer).mode.value),
        **keys.TASKS.says({exam.name: exam.describe() for exam in exams}),
        **keys.GENERATION.says(side_by_side(prompts, dense_says, compressed_says)),
    }
    if config.save is not Save.none:
        results |= label_checkpoint(config, run_dir / CHECKPOINT, model, compression, results)
    findings = Findings.of(results, compression)
    findings.leave(run_dir)
    write_atomically(run_dir / RESULTS, json.dumps(results, indent=1))  # last: whoever has it is finished
    telling.findings(findings)
    show(results, saved=config.save is not Save.none, last=not in_sweep())
    return results


def side_by_side(prompts: Sequence[str], dense: Sequence[str], compressed: Sequence[str]) -> list[Mapping[str, str]]:
    """Continuations of each prompt by the dense and by the compressed model."""
    rows = zip(prompts, dense, compressed, strict=True)
    return [{"prompt": prompt, "dense": before, "compressed": after} for prompt, before, after in rows]


def label_checkpoint(
    config: Config, folder: Path, model: PreTrainedModel, compression: Compression, results: Results
) -> Results:
    """Put into a checkpoint its origin's licence texts, and a card where it is for a hub; returns the origin."""
    made_from = origin(config.model, ask_the_hub=config.save is Save.hf)
    noted = keys.ORIGIN.says(made_from.noted())
    copy_texts(made_from, folder)
    if config.save is Save.hf:
        dense_class = checkpoint.architecture_of(model)
        describe(folder, model.config, dense_class, compression.ranks, results | noted, made_from)
    return noted
