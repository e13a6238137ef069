"""What can be known to be wrong before a run computes anything: texts, files, lengths and token ids."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.allocation.budget import Learning
from svdexp.checkpoints.loading import load_config, locate, require_dense
from svdexp.checkpoints.prequantised import refuse_codes
from svdexp.data import Excerpt, Split, whole_files
from svdexp.data.captions import open_image, shown_by
from svdexp.data.overlap import PASSAGE, pictures_that_share, refuse_equal_files, windows_that_share
from svdexp.engine.search import require_searchable
from svdexp.evaluation import check_tasks, check_texts, reading_of, require_context
from svdexp.evaluation.generation import TOKENS as CONTINUATION
from svdexp.method import Method
from svdexp.models.positions import positions_of
from svdexp.record import place
from svdexp.record.results import (
    ACHIEVED_RATIO,
    FLOPS_PER_TOKEN,
    GENERATION_BYTES,
    LATENCY,
    PPL,
    SPEED,
    SPEED_SPREAD,
)
from svdexp.runtime.errors import UserError, require
from svdexp.schema import COLLECTED, IMAGES, Config, EvalConfig, ModelConfig

log = logging.getLogger(__name__)


def check_inputs(config: Config, method: Method, found: Any = None) -> None:
    """Raise UserError for what can be known to be wrong before anything is loaded.

    `found` is the dense model's transformers configuration, where it was read already.
    """
    if found is None:
        require_dense(config.model)
        if locate(config.model).gguf_file is None:
            found = load_config(config.model)
    if found is not None:
        refuse_codes(found, f"model.path={config.model.path}")
    for excerpt in excerpts(config, method).values():
        excerpt.check()
    refuse_learning_images(config, method)
    check_evaluation(config.eval, config.model, found)
    refuse_known_texts(config.eval, excerpts(config, method))
    if config.ppl is not None:
        target_text(config)
        require_searchable(method)
    check_windows(config, method)
    check_objective(config)


def check_objective(config: Config) -> None:
    """Raise UserError where `objective` names what no results.json of this run will have."""
    if (key := config.objective) is None:
        return
    found, texts = place(key), config.eval.texts
    example = PPL.at(texts[0]) if texts else ACHIEVED_RATIO.name
    if found is None or not found.entry.kind.fits(1):  # a number
        raise UserError(
            f"objective={key} is no figure of results.json, as {example} is (svdexp/record/results.py lists them)"
        )
    if found.entry is PPL:
        text = key.partition("/")[2]
        require(text in texts, f"objective={key}: eval.texts has no {text}, only {', '.join(texts) or 'none'}")
    if found.entry in (SPEED, SPEED_SPREAD, LATENCY, GENERATION_BYTES, FLOPS_PER_TOKEN):
        require(config.eval.efficiency is not None, f"objective={key} wants eval.efficiency, which is null")


def refuse_learning_images(config: Config, method: Method) -> None:
    """Raise UserError where images calibrate what is then learnt from text alone."""
    if config.calibration.text != IMAGES:
        return
    learners = [f"method.training.{name}" for name in method.training if name not in method.excerpts]
    if isinstance(method.allocation, Learning):
        learners.append("method/allocation")
    for knob in learners:
        raise UserError(f"calibration=images: {knob} learns from windows of text; leave it out, or calibrate on text")


def target_text(config: Config) -> str:
    """The text that `ppl` is measured on.

    Raises:
        UserError: it does not evaluate.
    """
    texts = config.eval.texts
    require(bool(texts), "ppl is measured on a text: eval.texts has none")
    name = config.ppl_text or texts[0]
    require(name in texts, f"ppl_text={name} is not in eval.texts, which has {', '.join(texts)}")
    return name


def excerpts(config: Config, method: Method) -> dict[str, Excerpt]:
    """What calibrates, and what trainings learn from instead, by the keys that configure them."""
    found = [Excerpt.of(config.calibration), *method.excerpts.values()]
    return {excerpt.knob: excerpt for excerpt in found}


def refuse_known_texts(asked: EvalConfig, learnt: Mapping[str, Excerpt]) -> None:
    """Raise UserError where the rows of one data set, or a file, calibrate or train, and evaluate too."""
    refuse_equal_rows(asked, learnt)
    refuse_equal_files(files_learnt(learnt), files_asked(asked))


def refuse_equal_rows(asked: EvalConfig, learnt: Mapping[str, Excerpt]) -> None:
    """Raise UserError where the rows of one data set calibrate or train, and evaluate too."""
    name = next((name for name in COLLECTED if name in asked.texts), None)
    if name is None:
        return
    rows = reading_of(name, asked).collection
    key = f"eval.split_by_text.{name}" if name in asked.split_by_text else "eval.split"
    for knob, excerpt in learnt.items():
        if rows and any(rows.is_also(part.collection) for part in excerpt.members if part.text in COLLECTED):
            raise UserError(
                f"{knob}.split and {key} are both {rows.split} of {asked.dataset}: what "
                "calibrates or trains cannot evaluate, because its figures would be too good"
            )


def files_learnt(learnt: Mapping[str, Excerpt]) -> dict[str, list[Path]]:
    """The files whose whole text calibrates or trains, by the key that names them."""
    found: dict[str, list[Path]] = {}
    for excerpt in learnt.values():
        found |= excerpt.whole_files()
    return found


def files_asked(part: EvalConfig) -> dict[str, list[Path]]:
    """The files whose whole text evaluates, by the key that names them."""
    return {
        "eval.files" if name == "files" else f"eval.texts ({name})": whole_files(
            name, Split.evaluation, part.files, reading_of(name, part)
        )
        for name in part.texts
    }


def warn_of_shared_passages(asked: Mapping[str, torch.Tensor], learnt: Mapping[str, torch.Tensor]) -> None:
    """Warn where windows (N, L) of a text that evaluates hold passages of what calibrates or trains."""
    for text, windows in asked.items():
        for part, known in learnt.items():
            if shared := pictures_that_share(windows, known):
                log.warning("eval.texts, %s: %d of %d images are in %s, too", text, shared, len(windows), part)
            if shared := windows_that_share(windows, known):
                log.warning(
                    "eval.texts, %s: %d of %d windows hold passages of %d or more tokens that %s holds too: "
                    "figures of this text will be better than they are",
                    *(text, shared, len(windows), PASSAGE, part),
                )


def refuse_known(text: str, windows: torch.Tensor, learnt: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where all windows (N, L) of the text that says how small a model shall be were learnt from;
    warn where some were."""
    for part, known in learnt.items():
        shared = windows_that_share(windows, known)
        require(shared < len(windows), f"ppl_text, {text}: {part} holds all of it, so it cannot judge a model")
    warn_of_shared_passages({text: windows}, learnt)


def check_windows(config: Config, method: Method) -> None:
    """Raise UserError where windows will be too few, or too short, for what is to be learnt from them."""
    sizes = {knob: (excerpt.samples, excerpt.seq_len) for knob, excerpt in excerpts(config, method).items()}
    method.check_windows(sizes.pop("calibration"), sizes)


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
    return {"eval.seq_len": part.seq_len} if set(part.texts) - {IMAGES} else {}


def window_lengths(config: Config, method: Method) -> dict[str, int]:
    """The lengths of all windows of a run, by the keys that say so."""
    learnt = {f"{knob}.seq_len": excerpt.seq_len for knob, excerpt in excerpts(config, method).items()}
    return learnt | evaluation_lengths(config.eval)


def check_ids(model: PreTrainedModel, texts: Mapping[str, torch.Tensor], tokenizer: Any) -> None:
    """Raise UserError where a text has tokens that the model's embedding has no row for; warn where others could.

    Args:
        model: the model.
        texts: token ids, in any shape, by what they are of.
        tokenizer: what gave them; None where that is not known.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    for what, ids in texts.items():
        if ids.numel() and int(ids.max()) >= rows:
            raise UserError(
                f"{what}: the tokenizer gives token {int(ids.max())}, but the model's embedding has {rows} rows; "
                "is it the tokenizer of another model?"
            )
    if tokenizer is not None and len(tokenizer) > rows:
        log.warning("the tokenizer has %d tokens, but the model's embedding has %d rows", len(tokenizer), rows)


def prompt_lengths(prompts: Sequence[str], tokenizer: Any) -> dict[str, int]:
    """The tokens of the longest prompt with its continuation, by what `check_lengths` calls them; none: nothing."""
    lengths = [len(ids) + CONTINUATION for ids in prompt_ids(prompts, tokenizer).values()]
    return {"the longest of eval.prompts with its continuation": max(lengths)} if lengths else {}


def prompt_ids(prompts: Sequence[str], tokenizer: Any) -> dict[str, torch.Tensor]:
    """The tokens of each prompt, but for images, by what `check_ids` calls it."""
    texts = {prompt: shown_by(prompt)[1] for prompt in prompts}
    return {f"eval.prompts, {prompt!r}": torch.tensor(tokenizer(text)["input_ids"]) for prompt, text in texts.items()}


def check_evaluation(part: EvalConfig, model: ModelConfig, found: Any = None) -> None:
    """Raise UserError for what can be known to be wrong with an evaluation of a model before its weights are read.

    `found` is its transformers configuration, where it was read already.
    """
    check_texts(part)
    check_tasks(part)
    for image in filter(None, (shown_by(prompt)[0] for prompt in part.prompts)):
        require(image.is_file(), f"eval.prompts: {image} is not a file")
        open_image(image, "eval.prompts")
    # The config in a GGUF file takes almost as long to read as the model; `evaluate` checks that one.
    if part.efficiency is not None and (found is not None or locate(model).gguf_file is None):
        require_context(found if found is not None else load_config(model), part.efficiency)
