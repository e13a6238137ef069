"""What a run reads: checked before anything is loaded; then the model, and texts as token windows."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Learned
from svdexp.checkpoints.loading import load_config, locate, require_dense, resolve_dtype
from svdexp.data import (
    Beginning,
    Split,
    chat_tokens,
    check_text,
    cut_windows,
    read_rows,
    read_text,
    require_rows,
    resolve_bos,
    tokenize,
    warn_without_bos,
    whole_files,
)
from svdexp.data.overlap import PASSAGE, refuse_equal_files, windows_that_share
from svdexp.evaluation import Exam, Passage, check_tasks, check_texts, load_exams, passage, require_context
from svdexp.evaluation.generation import TOKENS as CONTINUATION
from svdexp.method import Method
from svdexp.models.positions import positions_of
from svdexp.models.spreading import BALANCED, settled
from svdexp.runs.converted import dense_model, tokenizer_of
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, EvaluateConfig, ModelConfig, Sampling
from svdexp.training import SequentialLora

log = logging.getLogger(__name__)


def check_inputs(config: Config, method: Method) -> None:
    """Raise UserError for what can be known to be wrong before anything is loaded."""
    require_dense(config.model)
    sources: list[CalibrationConfig | SequentialLora] = [config.calibration]
    sources += [part for part in method.training.values() if isinstance(part, SequentialLora)]
    for part in sources:
        if part.text is not None:
            check_text(part.text, Split.calibration, part.files)
            if part.chat:
                require_rows(part.text, Split.calibration, part.files)
    check_evaluation(config.eval, config.model)
    refuse_equal_files(files_learnt(config, method), files_asked(config.eval))
    check_windows(config, method)


def files_learnt(config: Config, method: Method) -> dict[str, list[Path]]:
    """The files whose whole text calibrates or trains, by the key that names them."""
    parts: dict[str, CalibrationConfig | SequentialLora] = {"calibration": config.calibration}
    trainings = method.training.items()
    parts |= {f"method.training.{name}": part for name, part in trainings if isinstance(part, SequentialLora)}
    return {
        f"{knob}.files" if part.text == "files" else f"{knob}.text={part.text}": whole_files(
            part.text, Split.calibration, part.files
        )
        for knob, part in parts.items()
        if part.text is not None
    }


def files_asked(part: EvalConfig) -> dict[str, list[Path]]:
    """The files whose whole text evaluates, by the key that names them."""
    return {
        "eval.files" if name == "files" else f"eval.texts ({name})": whole_files(name, Split.evaluation, part.files)
        for name in part.texts
    }


def warn_of_shared_passages(asked: Mapping[str, torch.Tensor], learnt: Mapping[str, torch.Tensor]) -> None:
    """Warn where windows (N, L) of a text that evaluates hold passages of what calibrates or trains."""
    for text, windows in asked.items():
        for part, known in learnt.items():
            if shared := windows_that_share(windows, known):
                log.warning(
                    "eval.texts, %s: %d of %d windows hold passages of %d or more tokens that %s holds too: "
                    "figures of this text will be better than they are",
                    *(text, shared, len(windows), PASSAGE, part),
                )


def check_windows(config: Config, method: Method) -> None:
    """Raise UserError where windows will be too few, or too short, for what is to be learnt from them."""
    part = config.calibration
    for training in method.training.values():
        if isinstance(training, SequentialLora) and training.text is not None:
            if training.samples is not None:
                training.check(training.samples, training.seq_len)
        else:
            training.check(part.samples, part.seq_len)
    if isinstance(method.allocation, Learned):
        method.allocation.check(part.seq_len)


def check_lengths(model: PreTrainedModel, lengths: Mapping[str, int]) -> None:
    """Raise UserError where windows are longer than a model can read; warn where they are beyond what it was made for.

    Args:
        model: it may be on the meta device.
        lengths: of the windows, by the key that says so, or of other texts.
    """
    known = positions_of(model)
    over = {knob: length for knob, length in lengths.items() if known and length > known.count}
    if not known or not over:
        return
    asked = " and ".join(f"{knob}={length}" for knob, length in over.items())
    has = f"the {known.count} positions that {type(model).__name__} has"
    if known.firm:
        raise UserError(f"{asked}: more tokens than {has}")
    log.warning("%s: more tokens than %s; it computes on, outside of what it was made for", asked, has)


def evaluation_lengths(part: EvalConfig) -> dict[str, int]:
    """The length of the windows that evaluate, by its key; nothing without texts."""
    return {"eval.seq_len": part.seq_len} if part.texts else {}


def window_lengths(config: Config, method: Method) -> dict[str, int]:
    """The lengths of all windows of a run, by the keys that say so."""
    found = {"calibration.seq_len": config.calibration.seq_len} | evaluation_lengths(config.eval)
    for training in method.training.values():
        if isinstance(training, SequentialLora) and training.text is not None:
            found[f"{training.knob}.seq_len"] = training.seq_len
    return found


def check_ids(model: PreTrainedModel, texts: Mapping[str, torch.Tensor], tokenizer: Any) -> None:
    """Raise UserError where a text has tokens that the model's embedding has no row for; warn where others could.

    Args:
        model: the model.
        texts: token ids, in any shape, by what they are of.
        tokenizer: what gave them.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    for what, ids in texts.items():
        if ids.numel() and int(ids.max()) >= rows:
            raise UserError(
                f"{what}: the tokenizer gives token {int(ids.max())}, but the model's embedding has {rows} rows; "
                "is it the tokenizer of another model?"
            )
    if len(tokenizer) > rows:
        log.warning("the tokenizer has %d tokens, but the model's embedding has %d rows", len(tokenizer), rows)


def prompt_lengths(prompts: Sequence[str], tokenizer: Any) -> dict[str, int]:
    """The tokens of the longest prompt with its continuation, by what `check_lengths` calls them; none: nothing."""
    lengths = [len(ids) + CONTINUATION for ids in prompt_ids(prompts, tokenizer).values()]
    return {"the longest of eval.prompts with its continuation": max(lengths)} if lengths else {}


def prompt_ids(prompts: Sequence[str], tokenizer: Any) -> dict[str, torch.Tensor]:
    """The tokens of each prompt, by what `check_ids` calls it."""
    return {f"eval.prompts, {prompt!r}": torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts}


def check_evaluation(part: EvalConfig, model: ModelConfig) -> None:
    """Raise UserError for what can be known to be wrong with an evaluation of a model before its weights are read."""
    check_texts(part)
    check_tasks(part)
    # The config in a GGUF file takes almost as long to read as the model; `evaluate` checks that one.
    if part.efficiency is not None and locate(model).gguf_file is None:
        require_context(load_config(model), part.efficiency)


class Material(NamedTuple):
    """What a run reads: the model, its tokenizer, calibration windows (N, L), the trainings' own, and what is asked."""

    model: PreTrainedModel
    tokenizer: Any
    windows: torch.Tensor
    lessons: dict[str, torch.Tensor]
    texts: dict[str, Passage]
    exams: list[Exam]


def read(config: Config, method: Method, device: torch.device) -> Material:
    """Everything that a run needs from files; the model last, because it takes longest."""
    tokenizer = tokenizer_of(config.model, config.cache)
    windows = calibration_windows(config, tokenizer)
    lessons = training_windows(config, method, tokenizer)
    texts = evaluation_windows(config, tokenizer)
    exams = load_exams(config.eval, config.seed)
    load = partial(dense_model, config, resolve_dtype(config.precision, device))
    model = settled(load, device, config.device == BALANCED)
    check_lengths(model, window_lengths(config, method) | prompt_lengths(config.eval.prompts, tokenizer))
    tokens = {"calibration": windows} | {f"method.training.{name}": own for name, own in lessons.items()}
    warn_of_shared_passages({name: text.windows for name, text in texts.items()}, tokens)
    tokens |= {f"eval.texts, {name}": text.windows for name, text in texts.items()}
    check_ids(model, tokens | prompt_ids(config.eval.prompts, tokenizer), tokenizer)
    return Material(model, tokenizer, windows, lessons, texts, exams)


def calibration_windows(config: Config, tokenizer: Any) -> torch.Tensor:
    """Token windows (samples, seq_len) that calibrate; a warning where they lack a token that the model may need."""
    part = config.calibration
    warn_without_bos(part.bos, tokenizer, "calibration.bos")
    bos = calibration_bos(config, tokenizer)
    stream = token_stream(part.text, part.files, part.chat, tokenizer, bos)
    generator = None
    if part.sampling is Sampling.random:
        generator = torch.Generator().manual_seed(config.seed)
    knob = "calibration.samples"
    return cut_windows(stream, part.seq_len, part.samples, knob=knob, bos=bos.of_windows, generator=generator)


def training_windows(config: Config, method: Method, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Token windows (samples, seq_len) of those trainings that have a text of their own, by their names.

    They begin as those that calibrate do.
    """
    found = {}
    bos = calibration_bos(config, tokenizer)
    for name, part in method.training.items():
        if isinstance(part, SequentialLora) and part.text is not None:
            knob = f"method.training.{name}.samples"
            stream = token_stream(part.text, part.files, part.chat, tokenizer, bos)
            found[name] = cut_windows(stream, part.seq_len, part.samples, knob=knob, bos=bos.of_windows)
    return found


def token_stream(text: str, files: Sequence[str], chat: bool, tokenizer: Any, bos: Beginning) -> torch.Tensor:
    """The tokens of a text that calibrates or trains, (T,); with the one at its start, if `bos` has one there."""
    source = (text, Split.calibration, files)
    if not chat:
        return bos.begun(tokenize(read_text(*source), tokenizer))
    stream = chat_tokens(read_rows(*source), tokenizer)
    return bos.begun(stream[1:] if bos.token is not None and stream[:1].tolist() == [bos.token] else stream)


def evaluation_windows(config: Config | EvaluateConfig, tokenizer: Any) -> dict[str, Passage]:
    """The windows of each text that evaluates; a warning where they lack a token that the model may need."""
    warn_without_bos(config.eval.bos, tokenizer, "eval.bos")
    return {name: passage(name, config.eval, tokenizer) for name in config.eval.texts}


def calibration_bos(config: Config, tokenizer: Any) -> Beginning:
    """What windows that calibrate or train begin with.

    Raises:
        UserError: the tokenizer has no beginning-of-sequence token.
    """
    return resolve_bos(config.calibration.bos, tokenizer, "calibration.bos")


def window_counts(config: Config) -> list[int]:
    """How many windows of each text will be evaluated."""
    counts = [config.eval.windows_of(name)[0] for name in config.eval.texts]
    if None in counts:
        return [len(part) for part in evaluation_windows(config, tokenizer_of(config.model, config.cache)).values()]
    return [count for count in counts if count is not None]
