"""Measure a model from Python: arguments are the options of conf/evaluate.yaml, checks and steps the command's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.cells.choices import model_path
from svdexp.checkpoints.loading import resolve_device, resolve_dtype
from svdexp.data import resolve_bos, scored_tokens, tokenize
from svdexp.door.asking import cache_folder, model_keys, plain_word, refuse_moves, tokenizer_at
from svdexp.door.composing import composed, keys_of, refuse_idle
from svdexp.door.figures import Figures
from svdexp.door.guest import as_guest
from svdexp.door.texts import SEPARATOR, documents_in, files_in, fitting, names_in, tokenizer_wanted, windows_in
from svdexp.evaluation import (
    Exam,
    Passage,
    TextProtocol,
    check_tasks,
    check_texts,
    load_exams,
    passage_of,
    protocols,
    require_context,
)
from svdexp.evaluation import evaluate as figures_of
from svdexp.models.behaviour import require_next_token
from svdexp.models.modes import at_rest
from svdexp.models.spreading import BALANCED, settled
from svdexp.record import Results
from svdexp.record import results as keys
from svdexp.runs.checks import check_ids, check_lengths, warn_of_shared_passages
from svdexp.runs.converted import tokenizer_of
from svdexp.runs.evaluation import check_measured, find, load
from svdexp.runs.history import Learnt
from svdexp.runs.inputs import evaluation_windows
from svdexp.runs.residency import evaluation_streams, require_likelihoods
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.shelves import Cache
from svdexp.schema import Bos, Cut, EfficiencyConfig, EvalConfig, EvaluateConfig, SpecialTokens, validate_evaluation

GIVEN = "given"  # what a text is called that has no name
ELSEWHERE = {"hydra": "there is no run folder", "path": "it is the first argument", "model": "it is the first argument"}


class Questions(NamedTuple):
    """What is to be measured, of one model or of several.

    Attributes:
        config: all options.
        tokenizer: of the models; None where only token ids are given.
        texts: what perplexities are measured on.
        exams: what accuracies are measured on.
    """

    config: EvaluateConfig
    tokenizer: Any
    texts: dict[str, Passage]
    exams: list[Exam]

    def protocols(self) -> Results:
        """How it is measured, for a record."""
        asked = {exam.name: exam.describe() for exam in self.exams}
        return (
            keys.PROTOCOL.says(protocols(self.texts))
            | keys.TASKS.says(asked)
            | keys.EVAL.says(asdict(self.config.eval))
        )


@as_guest
def evaluate(
    model: str | PathLike[str] | PreTrainedModel,
    texts: object = None,
    tasks: str | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    eval: str | Mapping[str, Any] | None = None,
    speed: bool | None = None,
    windows: int | None = None,
    seq_len: int | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | torch.device | None = None,
    precision: str | torch.dtype | None = None,
    residency: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache: str | PathLike[str] | None = None,
) -> Figures:
    """Perplexities, accuracies, speed and size of a model as it is, dense or compressed.

    Without texts and tasks all that `eval` has; with them these alone, and no speed.

    Args:
        model: a folder, a hub id, a .gguf file, a name in conf/model/, a run or checkpoint of svdexp's, or a model of
            transformers, which stays as it is.
        texts: names of texts ("pydoc", "wikitext2"), files, documents (strings with white space), token ids (N, L), or
            a dictionary of documents or token ids by names of yours.
        tasks: names of tasks: "arc_easy", "commonsense".
        tokenizer: of a given model, or a folder; wanted where there is text.
        eval: a name in conf/eval/, whose protocol is followed, or its options in a dictionary; quick by default.
        speed: whether prompts and generation are timed.
        windows, seq_len: of each text so many windows of so many tokens; of documents all by default, of 1024 tokens or
            in one window.
        limit: rows of each task, drawn with `seed`.
        overrides: anything else, as on the command line: `["eval.stride=512"]`.
        seed, device, precision, revision, trust_remote_code, cache: as for `svdexp.compress`.
        residency: "streamed" has one block of the model in memory at a time; by default, where the whole does not fit.

    Returns:
        Figures by their keys in results.json: ppl/pydoc, acc/arc_easy, bytes.

    Raises:
        UserError: anything that can be mended, in one sentence.
    """
    if isinstance(model, PreTrainedModel):
        refuse_moves(device=device, precision=precision, residency=residency, revision=revision)
    asked = questions(
        model,
        texts,
        tasks,
        tokenizer=tokenizer,
        eval=eval,
        speed=speed,
        windows=windows,
        seq_len=seq_len,
        limit=limit,
        overrides=overrides,
        seed=seed,
        device=device,
        precision=precision,
        residency=residency,
        revision=revision,
        trust_remote_code=trust_remote_code,
        cache=cache,
    )
    if isinstance(model, PreTrainedModel):
        return Figures(answered(model, asked, GIVEN))
    with TemporaryDirectory() as folder:
        return Figures(answered(_loaded(asked, Path(folder)), asked, GIVEN))


def questions(
    model: object,
    texts: object,
    tasks: str | Sequence[str] | None,
    *,
    tokenizer: Any = None,
    eval: str | Mapping[str, Any] | None = None,
    speed: bool | None = None,
    windows: int | None = None,
    seq_len: int | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: object = None,
    precision: object = None,
    residency: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache: str | PathLike[str] | None = None,
) -> Questions:
    """What is asked of a model, or of one at this path; arguments as `evaluate` takes them.

    Raises:
        UserError: as `evaluate`, before a model is read.
    """
    refuse_idle(overrides, ELSEWHERE)
    values = _model_values(model, revision, trust_remote_code)
    known = {"seed": seed, "device": device, "precision": precision, "residency": residency}
    known |= {"eval.windows": windows, "eval.seq_len": seq_len, "eval.limit": limit}
    values |= {key: plain_word(value) for key, value in known.items() if value is not None}
    folder = cache_folder(cache)
    values |= {"cache": str(folder) if folder else None, "eval.prompts": []}
    preset = dict(eval) if isinstance(eval, Mapping) else {"name": eval}
    words = [f"eval={preset.pop('name', None) or 'quick'}"]
    values |= {f"eval.{key}": value for key, value in preset.items()}
    own: Mapping[str, Any] = {}
    if texts is not None or tasks is not None:
        asked, own = _texts(texts)
        values |= asked | {"eval.tasks": [tasks] if isinstance(tasks, str) else list(tasks or [])}
        speed = bool(speed)
    words += _speed(speed)
    values |= {"eval.efficiency": None} if speed is False else {}
    said = {*values, *keys_of(overrides)}
    config = validate_evaluation(composed("evaluate", EvaluateConfig, [*words, *overrides], values))

    torch.manual_seed(config.seed)
    learnt = _checked(model, config)
    tokenizer = tokenizer_at(tokenizer, trust_remote_code)
    if tokenizer is None and not isinstance(model, PreTrainedModel):
        tokenizer = tokenizer_of(find(config.model), config.cache)
    written = [text for text in own.values() if not isinstance(text, torch.Tensor)]
    if tokenizer is None and (written or config.eval.texts or config.eval.tasks):
        raise tokenizer_wanted("texts")
    size = [getattr(config.eval, key) if f"eval.{key}" in said else None for key in ("windows", "seq_len")]
    passages = {} if tokenizer is None else evaluation_windows(config, tokenizer)
    passages |= {name: _passage(name, text, config.eval, tokenizer, *size) for name, text in own.items()}
    if passages:
        warn_of_shared_passages({name: text.windows for name, text in passages.items()}, learnt.windows(tokenizer))
    return Questions(config, tokenizer, passages, load_exams(config.eval, config.seed))


def _model_values(model: object, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Which model, as conf/evaluate.yaml has it: a name in conf/model/ is what that says, under its name."""
    _, values = model_keys(model, revision, trust_remote_code)
    path = values.pop("model.path", None)
    return values | ({"path": path} if path else {"path": model_path(str(model)), "model.name": str(model)})


def _texts(texts: object) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The options of texts that have names or are files, and those that are given, by names."""
    files = files_in(texts)
    names = None if files else names_in(texts)
    options = {"eval.texts": ["files"] if files else names or [], "eval.files": files or []}
    if texts is None or files or names:
        return options, {}
    return options, texts if isinstance(texts, Mapping) else {GIVEN: texts}


def _speed(wanted: bool | None) -> list[str]:
    """The override that asks for it; before those of a caller, who may say how long prompts are."""
    usual = ",".join(f"{key}:{value}" for key, value in asdict(EfficiencyConfig()).items())
    return [f"eval.efficiency={{{usual}}}"] if wanted else []


def _checked(model: object, config: EvaluateConfig) -> Learnt:
    """What the model at a path learnt from, where that is known.

    Raises:
        UserError: what can be known to be wrong before a model is read.
    """
    if not isinstance(model, PreTrainedModel):
        return check_measured(config.eval, find(config.model))
    check_texts(config.eval)
    check_tasks(config.eval)
    if config.eval.efficiency:
        require_context(model.config, config.eval.efficiency)
    return Learnt()


def answered(model: PreTrainedModel, asked: Questions, what: str) -> Results:
    """The figures of a model, which stays as it is.

    Raises:
        UserError: its logits depend on later tokens, or it cannot read what is asked.
    """
    with at_rest(model):
        require_next_token(model)
        check_lengths(model, {f"texts, {name}: seq_len": text.windows.shape[1] for name, text in asked.texts.items()})
        check_ids(model, {f"texts, {name}": text.windows for name, text in asked.texts.items()}, asked.tokenizer)
        cache = Cache(Path(asked.config.cache) if asked.config.cache else None)
        return figures_of(model, asked.texts, asked.config, cache, what, asked.exams, asked.tokenizer)


def _loaded(asked: Questions, folder: Path) -> PreTrainedModel:
    """The model at the path; where it is streamed, `folder` has what of it is in no file as it is."""
    config, device = asked.config, resolve_device(asked.config.device)
    source, dtype = find(config.model), resolve_dtype(config.precision, device)
    blocks = folder if evaluation_streams(config, source, device) else None
    if blocks:
        require_likelihoods(asked.exams)
    return settled(partial(load, source, dtype, blocks=blocks), device, config.device == BALANCED)


def _passage(
    name: str, text: object, part: EvalConfig, tokenizer: Any, windows: int | None, seq_len: int | None
) -> Passage:
    """Documents or token ids as what perplexity is measured on.

    Raises:
        UserError: it is neither, or too short.
    """
    if isinstance(text, torch.Tensor):
        require((windows, seq_len) == (None, None), "windows and seq_len have no effect on token ids: slice the tensor")
        tokens = windows_in(text, f"texts, {name}")
        count, length = tokens.shape
        scored = scored_tokens(count, length, length)
        protocol = TextProtocol(
            preset=part.name,
            dataset=GIVEN,
            split=GIVEN,
            rows=count,
            separator="",
            cut=Cut.contiguous.value,
            seq_len=length,
            stride=length,
            bos=Bos.none.value,
            special_tokens=SpecialTokens.text.value,
            windows=count,
            tokens=int(scored.sum()),
        )
        return Passage(tokens, scored, protocol)
    documents = documents_in(text)
    if documents is None:
        raise UserError(f"texts, {name}: documents are strings of several words, or a list of strings, not {text!r}")
    bos = resolve_bos(part.bos, tokenizer)
    stream = bos.begun(tokenize(SEPARATOR.join(documents), tokenizer))
    own = replace(part, windows=windows, seq_len=seq_len or fitting(stream, bos, part.seq_len))
    return passage_of(name, documents, own, tokenizer, separator=SEPARATOR, dataset=GIVEN, split=GIVEN)
