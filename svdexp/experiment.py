"""One run, top-down: texts → model → dense evaluation → compress → evaluation → save → record."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.cache import Cache, fingerprint, model_fingerprint
from svdexp.compress import compress, plan
from svdexp.disk import write_atomically
from svdexp.estimate.forecast import forecast
from svdexp.evaluation import (
    Exam,
    Passage,
    accuracies,
    continuations,
    load_exams,
    measure_efficiency,
    perplexity,
    protocols,
    require_context,
)
from svdexp.material import calibration_windows, check_inputs, evaluation_windows, training_windows, window_counts
from svdexp.method import Method
from svdexp.models import checkpoint
from svdexp.models.loading import (
    load_skeleton,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from svdexp.models.origin import origin
from svdexp.models.structure import Targets, stored_bytes
from svdexp.processes import Processes
from svdexp.publish import describe
from svdexp.schema import Config, EvaluateConfig, Save
from svdexp.stages import build, build_method
from svdexp.sweeps import state_of
from svdexp.sweeps.cached import cached_stages
from svdexp.sweeps.converted import dense_model
from svdexp.sweeps.identity import identity_of
from svdexp.timing import StageClock
from svdexp.tracking import Log, NoTracker, Results, commit, layer_rows, record, show, tracked

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Results | None:
    """Carry out one experiment; leaves ranks.json, layers.json, checkpoint/ and results.json in `run_dir`.

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
    with tracked(tracker, config, run_dir) as track:
        return carry_out(config, method, device, run_dir, track, cell)


def carry_out(
    config: Config, method: Method, device: torch.device, run_dir: Path, track: Log, cell: str
) -> Results | None:
    """`run`, after what can be checked at once; `track` takes what it found."""
    main = Processes().main
    dtype = resolve_dtype(config.precision, device)
    torch.manual_seed(config.seed)
    cache = Cache(Path(config.cache) if config.cache else None)
    clock = StageClock()

    with clock("load"):
        tokenizer = load_tokenizer(config.model)
        windows = calibration_windows(config, tokenizer)
        lessons = training_windows(method, tokenizer)
        texts = evaluation_windows(config, tokenizer)
        exams = load_exams(config.eval, config.seed)
        model = dense_model(config, dtype, device)
    targets = Targets(**vars(config.targets))
    layers, *_ = plan(model, method, config.ratio, targets)  # refuses what cannot be compressed
    log.info("\n%s", forecast(config, method, model, layers, [len(part) for part in texts.values()], device))

    with clock("evaluate_dense"):
        dense = evaluate(model, texts, config, cache, "dense", exams, tokenizer)
        dense_says = continuations(model, tokenizer, config.eval.prompts) if main else []
    compression = compress(
        model, windows, method, config.ratio, targets=targets, cache=cache, clock=clock, seed=config.seed, texts=lessons
    )
    if main:
        write_atomically(run_dir / "ranks.json", json.dumps(compression.ranks, indent=1))
        write_atomically(run_dir / "layers.json", json.dumps(layer_rows(compression), indent=1))
    with clock("evaluate"):
        compressed = evaluate(model, texts, config, cache, "compressed", exams, tokenizer)
        if not main:
            return None
        compressed_says = continuations(model, tokenizer, config.eval.prompts)
    compressed["protocol"] = protocols(texts)
    if config.save is not Save.none:
        with clock("save"):
            checkpoint.save(model, tokenizer, run_dir / "checkpoint", compression.ranks, compression.elastic)
            compressed |= verify_checkpoint(run_dir / "checkpoint", model, windows[:1])

    results = record(config, run_dir, dense, compressed, compression, clock, model) | {
        "cell": cell,
        "tasks": {exam.name: exam.describe() for exam in exams},
        "generation": [
            {"prompt": prompt, "dense": before, "compressed": after}
            for prompt, before, after in zip(config.eval.prompts, dense_says, compressed_says, strict=True)
        ],
    }
    if config.save is Save.hf:
        describe(run_dir / "checkpoint", model, compression.ranks, results, origin(config.model))
    write_atomically(run_dir / "results.json", json.dumps(results, indent=1))  # last: whoever has it is finished
    track(results, compression)
    show(results)
    return results


def preview(config: Config, run_dir: Path) -> None:
    """Print what the run would take, and where it stands.

    No weights are loaded, and a text only where all of its windows count.

    Raises:
        UserError: as `run` does for the configuration and the model's structure.
    """
    method = build_method(config)
    device = resolve_device(config.device)
    check_inputs(config, method)
    model = load_skeleton(config.model, resolve_dtype(config.precision, device))
    layers, *_ = plan(model, method, config.ratio, Targets(**vars(config.targets)))
    print(forecast(config, method, model, layers, window_counts(config), device))
    print(state_of(config, run_dir))
    print(
        cached_stages(config, method, model, layers, lambda: calibration_windows(config, load_tokenizer(config.model)))
    )


def evaluate(
    model: PreTrainedModel,
    texts: Mapping[str, Passage],
    config: Config | EvaluateConfig,
    cache: Cache,
    what: str,
    exams: Sequence[Exam] = (),
    tokenizer: Any = None,
) -> Results:
    """Figures of one model: ppl/TEXT and acc/TASK, their standard errors and counts, those of `Efficiency`,
    params, bytes.

    Perplexities and accuracies come from the cache where the same weights met the same text before; speed never does.
    Tasks need the tokenizer. Of processes that share the run, each measures its part of every text, and the main one
    all the rest.
    """
    figures: Results = {}
    processes = Processes()
    if config.eval.efficiency:
        require_context(model.config, config.eval.efficiency)
    weights = model_fingerprint(model) if texts or exams else None
    for name, text in texts.items():
        tokens = fingerprint({"windows": text.windows, "scored": text.scored})
        shelf = cache.shelf("perplexity", model=weights, windows=tokens, **surroundings(model))

        def measure(name: str = name, text: Passage = text) -> dict[str, torch.Tensor]:
            bar = f"perplexity of the {what} model, {name}"
            result = perplexity(model, text.windows, config.eval.batch_size, bar, text.scored, processes)
            return {key: torch.tensor(value, dtype=torch.float64) for key, value in vars(result).items()}

        known = processes.agree(shelf.get("perplexity"))
        if known is None:
            known = measure()
            if processes.main:
                shelf.put("perplexity", known)
        figures[f"ppl/{name}"] = known["value"].item()
        figures[f"ppl_stderr/{name}"] = known["stderr"].item()
        figures[f"ppl_tokens/{name}"] = int(known["tokens"].item())
    if not processes.main:
        return figures
    figures |= accuracies(
        model, tokenizer, exams, batch_size=config.eval.batch_size, cache=cache, weights=weights, what=what
    )
    if config.eval.efficiency is not None:
        speed = measure_efficiency(model, config.eval.efficiency, f"speed of the {what} model", config.seed)
        figures |= speed.figures()
    figures["params"] = sum(p.numel() for p in model.parameters())
    figures["bytes"] = stored_bytes(model)
    return figures


def surroundings(model: PreTrainedModel) -> dict[str, str | None]:
    """What changes a perplexity beside weights and windows: each device and each attention rounds in its own way."""
    return {"device": model.device.type, "attention": model.config._attn_implementation}


@torch.no_grad()
def verify_checkpoint(folder: Path, model: PreTrainedModel, windows: torch.Tensor) -> Results:
    """Load what was saved and compare its logits on one window with those of the model in memory.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    reloaded, _ = checkpoint.load(folder, device=model.device)
    tokens = windows.to(model.device)
    expected, found = model(tokens).logits, reloaded(tokens).logits
    difference = float((expected - found).abs().max())
    if difference > 8 * torch.finfo(expected.dtype).eps * float(expected.abs().max()):
        raise RuntimeError(f"the model reloaded from {folder} gives other logits (largest difference {difference:g})")
    return {"reload_max_logit_difference": difference}
