"""One evaluation of a model as it is, top-down: texts and tasks → model → figures → record."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from svdexp.cells.identity import identity_of
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.intake import weights_read
from svdexp.checkpoints.loading import load_model, locate, resolve_device, resolve_dtype
from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.evaluation import continuations, evaluate, load_exams, protocols
from svdexp.models.behaviour import require_next_token
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.pictures import showing
from svdexp.models.spreading import BALANCED, settled
from svdexp.record import RESULTS, Results
from svdexp.record import results as keys
from svdexp.runs.checks import (
    check_evaluation,
    check_ids,
    check_lengths,
    evaluation_lengths,
    prompt_ids,
    prompt_lengths,
    refuse_known_texts,
    warn_of_shared_passages,
)
from svdexp.runs.converted import tokenizer_of
from svdexp.runs.history import Learnt, learnt_by
from svdexp.runs.inputs import evaluation_windows, looks, viewer_of
from svdexp.runs.residency import evaluation_streams, require_likelihoods, room_for_blocks
from svdexp.runtime.clock import StageClock, forget_peak
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import EvalConfig, EvaluateConfig, ModelConfig
from svdexp.tracking import Narration, circumstances, commit, identified, show_one


def run(config: EvaluateConfig, run_dir: Path) -> Results:
    """Measure one model; leaves results.json in `run_dir`.

    Raises:
        UserError: anything the user can mend; raised before the model is loaded where possible.
    """
    commit()  # of the code that is in memory now
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    source = find(config.model)
    learnt = check_measured(config.eval, source)
    cell = identity_of(config)  # of the files that are read now
    streamed = evaluation_streams(config, source, device)
    torch.manual_seed(config.seed)
    forget_peak()
    with room_for_blocks(run_dir) as blocks:
        return measure(config, run_dir, source, learnt, device, dtype, cell, blocks if streamed else None)


def measure(
    config: EvaluateConfig,
    run_dir: Path,
    source: ModelConfig,
    learnt: Learnt,
    device: torch.device,
    dtype: torch.dtype,
    cell: str,
    blocks: Path | None,
) -> Results:
    """`run`, after what can be checked at once; the model is streamed given `blocks`."""
    story = Narration(("load", "evaluate"), labels={"evaluate": "model evaluated"})
    clock = StageClock(began=story.begins)

    with clock("load"):
        tokenizer = tokenizer_of(source, config.cache)
        viewer = viewer_of(source, tokenizer) if looks(config) else None
        texts = evaluation_windows(config, tokenizer, viewer)
        exams = load_exams(config.eval, config.seed)
        if blocks:
            require_likelihoods(exams)
        model = settled(partial(load, source, dtype, blocks=blocks), device, config.device == BALANCED)
        require_next_token(model)
        check_lengths(model, evaluation_lengths(config.eval) | prompt_lengths(config.eval.prompts, tokenizer))
        if texts:
            warn_of_shared_passages({name: text.windows for name, text in texts.items()}, learnt.windows(tokenizer))
        tokens = {f"eval.texts, {name}": text.windows for name, text in texts.items()}
        check_ids(model, tokens | prompt_ids(config.eval.prompts, tokenizer), tokenizer)
    with clock("evaluate"), showing(model, viewer.pictures if viewer else {}):
        cache = Cache(Path(config.cache) if config.cache else None)
        weights = model_fingerprint(model)
        figures = evaluate(model, texts, config, cache, "given", exams, tokenizer, weights)
        said = continuations(model, tokenizer, config.eval.prompts, config.eval.bos, viewer)

    story.ends(clock.seconds)
    results: Results = keys.CELL.says(cell) | identified(config.model, weights) | keys.EVAL.says(asdict(config.eval))
    results |= figures | file_bytes(source) | circumstances(config.seed, run_dir, clock, model)
    results |= keys.PROTOCOL.says(protocols(texts)) | keys.TASKS.says({exam.name: exam.describe() for exam in exams})
    results |= keys.GENERATION.says(
        [{"prompt": prompt, "continuation": text} for prompt, text in zip(config.eval.prompts, said, strict=True)]
    )
    write_atomically(run_dir / RESULTS, json.dumps(results, indent=1))
    show_one(results)
    return results


def check_measured(part: EvalConfig, source: ModelConfig) -> Learnt:
    """What the model that `find` found learnt from, where it is a run's.

    Raises:
        UserError: what can be known to be wrong with its evaluation before its weights are read, such as a text that
            it learnt from.
    """
    check_evaluation(part, source)
    learnt = learnt_by(Path(source.path).expanduser())
    refuse_known_texts(part, learnt.excerpts)
    return learnt


def find(config: ModelConfig) -> ModelConfig:
    """The model that `config` means: of a run directory, the checkpoint in it.

    Raises:
        UserError: it is neither a model nor a run, or has code of its own that is not trusted.
    """
    folder = Path(config.path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        if not (folder / "checkpoint" / "config.json").is_file():
            raise UserError(f"path={config.path} is neither a model, with config.json, nor a run, with checkpoint/")
        config = replace(config, path=str(folder / "checkpoint"))
    source = locate(config)
    if source.gguf_file is None and checkpoint.is_compressed(Path(source.location)):
        checkpoint.own_architecture(Path(source.location), config.trust_remote_code)
    return config


def file_bytes(config: ModelConfig) -> Results:
    """What the files with the weights take, where they are on this disk: of a GGUF file less than once it is loaded."""
    source = locate(config)
    folder = Path(source.location)
    files = [folder / source.gguf_file] if source.gguf_file else weights_read(folder)
    return keys.FILE_BYTES.says(sum(path.stat().st_size for path in files)) if files else {}


def load(config: ModelConfig, dtype: torch.dtype, device: torch.device, blocks: Path | None = None) -> PreTrainedModel:
    """The model, as svdexp saved it or as transformers loads it; streamed given `blocks`, a folder of its own."""
    folder = Path(config.path).expanduser()
    if checkpoint.is_compressed(folder):
        return checkpoint.load_as(folder, dtype, device, None, config.trust_remote_code, blocks)[0]
    return load_streamed(config, dtype, device, blocks) if blocks else load_model(config, dtype, device)
