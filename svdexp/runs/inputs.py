"""What a run reads: the model, and texts as token windows."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.loading import load_config, load_processor, resolve_dtype
from svdexp.data import Beginning, Excerpt, resolve_bos, warn_without_bos
from svdexp.data.captions import Viewer, pairs_of, shown_by, windows_of
from svdexp.engine.search import Measure
from svdexp.engine.size import NearDense, Size, WholeModel
from svdexp.evaluation import Exam, Passage, captions_passage, kept_perplexity, load_exams, passage
from svdexp.method import Method
from svdexp.models.spreading import BALANCED, spread_out
from svdexp.runs.checks import (
    check_ids,
    check_lengths,
    prompt_ids,
    prompt_lengths,
    target_text,
    warn_of_shared_passages,
    window_lengths,
)
from svdexp.runs.converted import Dense, dense_model, tokenizer_of
from svdexp.runs.residency import require_likelihoods
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.shelves import Cache
from svdexp.runtime.sizes import parse_factor, parse_size
from svdexp.schema import IMAGES, Config, EvaluateConfig, ModelConfig, Residency, Sampling


class Material(NamedTuple):
    """What a run reads.

    Attributes:
        model: the dense model.
        weights: its fingerprint.
        tokenizer: its tokenizer.
        windows: calibration token ids, (N, L).
        lessons: those of trainings with a text of their own, by their names.
        texts: what perplexities are measured on.
        exams: what accuracies are measured on.
        viewer: what made pictures of images, where there are any.
    """

    model: PreTrainedModel
    weights: str
    tokenizer: Any
    windows: torch.Tensor
    lessons: dict[str, torch.Tensor]
    texts: dict[str, Passage]
    exams: list[Exam]
    viewer: Viewer | None


def read(config: Config, method: Method, device: torch.device, blocks: Path | None = None) -> Material:
    """Everything that a run needs from files; the model last, because it takes longest, and streamed given `blocks`."""
    tokenizer = tokenizer_of(config.model, config.cache)
    viewer = viewer_of(config.model, tokenizer) if looks(config) else None
    windows = calibration_windows(config, tokenizer, viewer)
    lessons = training_windows(config, method, tokenizer)
    texts = evaluation_windows(config, tokenizer, viewer)
    exams = load_exams(config.eval, config.seed)
    if blocks:
        require_likelihoods(exams)
    model, weights = placed_model(config, device, blocks)
    check_lengths(model, window_lengths(config, method) | prompt_lengths(config.eval.prompts, tokenizer))
    tokens = {"calibration": windows} | {f"method.training.{name}": own for name, own in lessons.items()}
    warn_of_shared_passages({name: text.windows for name, text in texts.items()}, tokens)
    tokens |= {f"eval.texts, {name}": text.windows for name, text in texts.items()}
    check_ids(model, tokens | prompt_ids(config.eval.prompts, tokenizer), tokenizer)
    return Material(model, weights, tokenizer, windows, lessons, texts, exams, viewer)


def placed_model(config: Config, device: torch.device, blocks: Path | None = None) -> Dense:
    """The dense model on `device`, spread over all, or streamed given `blocks`; and its fingerprint.

    Raises:
        UserError: as `dense_model`, and where it shall be streamed by a caller that cannot.
    """
    able = blocks is not None or config.residency is not Residency.streamed
    require(able, "residency=streamed leaves a checkpoint and no model in memory: use it with python -m svdexp")
    spread = config.device == BALANCED
    place = torch.device("cpu") if spread else device
    dense = dense_model(config, resolve_dtype(config.precision, device), place, blocks)
    if spread:
        spread_out(dense.model)
    return dense


def looks(config: Config | EvaluateConfig) -> bool:
    """Whether images are looked at: they calibrate, evaluate, or are prompts."""
    texts = [*config.eval.texts, *([config.calibration.text] if isinstance(config, Config) else [])]
    return IMAGES in texts or any(shown_by(prompt)[0] for prompt in config.eval.prompts)


def viewer_of(model: ModelConfig, tokenizer: Any) -> Viewer:
    """What makes pictures of images for a model.

    Raises:
        UserError: it takes no images.
    """
    processor = load_processor(model)
    token = image_token(load_config(model), processor, tokenizer)
    if token is None:
        raise UserError(f"model.path={model.path}: neither config.json nor processor says which token is an image's")
    return Viewer(processor, tokenizer, token)


def image_token(config: Any, processor: Any, tokenizer: Any) -> int | None:
    """The id of the token where a model puts images: its config names it, under one of two names, or the processor."""
    named = (getattr(config, "image_token_id", None), getattr(config, "image_token_index", None))
    word = getattr(processor, "image_token", None)
    spelt = tokenizer.get_vocab().get(word) if isinstance(word, str) else None
    found = (*named, getattr(processor, "image_token_id", None), spelt)
    return next((token for token in found if isinstance(token, int) and token >= 0), None)


def calibration_windows(config: Config, tokenizer: Any, viewer: Viewer | None = None) -> torch.Tensor:
    """Token windows (samples, seq_len) that calibrate; a warning where they lack a token that the model may need.

    Those of images are made by the viewer.
    """
    part = config.calibration
    if part.text == IMAGES:
        found = Excerpt.of(part).collection
        assert found is not None, "the schema wants calibration.dataset"
        seer = viewer or viewer_of(config.model, tokenizer)
        return windows_of(pairs_of(found, "calibration", part.samples), seer, part.samples, part.seq_len, "calibration")
    warn_without_bos(part.bos, tokenizer, "calibration.bos")
    drawn = torch.Generator().manual_seed(config.seed) if part.sampling is Sampling.random else None
    return Excerpt.of(part).windows(tokenizer, calibration_bos(config, tokenizer), drawn)


def training_windows(config: Config, method: Method, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Token windows (samples, seq_len) of those trainings that have a text of their own, by their names.

    They begin as those that calibrate do.
    """
    bos = calibration_bos(config, tokenizer)
    return {name: excerpt.windows(tokenizer, bos) for name, excerpt in method.excerpts.items()}


def evaluation_windows(
    config: Config | EvaluateConfig, tokenizer: Any, viewer: Viewer | None = None
) -> dict[str, Passage]:
    """The windows of each text that evaluates; a warning where they lack a token that the model may need.

    Those of images are made by the viewer.

    Raises:
        UserError: as `passage` and `captions_passage`; or images without a viewer.
    """
    warn_without_bos(config.eval.bos, tokenizer, "eval.bos")
    require(viewer is not None or IMAGES not in config.eval.texts, "images evaluate with python -m svdexp.evaluate")
    return {
        name: captions_passage(config.eval, viewer)
        if name == IMAGES and viewer
        else passage(name, config.eval, tokenizer)
        for name in config.eval.texts
    }


def calibration_bos(config: Config, tokenizer: Any) -> Beginning:
    """What windows that calibrate or train begin with.

    Raises:
        UserError: the tokenizer has no beginning-of-sequence token.
    """
    return resolve_bos(config.calibration.bos, tokenizer, "calibration.bos")


def size_of(config: Config) -> Size:
    """How small the model shall be."""
    if config.ppl is not None:
        return NearDense(parse_factor(config.ppl, "ppl"), target_text(config))
    return config.ratio if config.bytes is None else WholeModel(parse_size(config.bytes, "bytes"))


def measured_on(text: Passage, name: str, batch_size: int | None, cache: Cache) -> Measure:
    """What a search for a size asks of a model: its perplexity on `text`, kept as those of evaluations are."""

    def measure(model: PreTrainedModel) -> float:
        found = kept_perplexity(model, text, batch_size, f"perplexity of what is tried, {name}", cache)
        return float(found["value"])

    return measure
