"""Compress a model from Python: the arguments are the options of conf/, and the run's own checks and steps."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Allocation
from svdexp.checkpoints.loading import require_dense, resolve_device
from svdexp.door.asking import Asked, Options, cache_folder, refuse_moves, targets_of, tokenizer_at
from svdexp.door.composing import keys_of
from svdexp.door.evaluate import questions
from svdexp.door.guest import as_guest
from svdexp.door.result import Result
from svdexp.door.texts import Text, cut, tokenizer_wanted
from svdexp.engine.compress import compress as compress_in_place
from svdexp.engine.search import require_searchable
from svdexp.engine.size import NearDense
from svdexp.evaluation import Passage
from svdexp.factorisation import Weighting
from svdexp.method import Method
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.structure import Targets
from svdexp.runs.checks import (
    check_ids,
    check_inputs,
    check_lengths,
    excerpts,
    refuse_known,
    refuse_known_texts,
    window_lengths,
)
from svdexp.runs.converted import Dense, tokenizer_of
from svdexp.runs.inputs import (
    calibration_bos,
    calibration_windows,
    measured_on,
    placed_model,
    size_of,
    training_windows,
)
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import require
from svdexp.runtime.shelves import Cache
from svdexp.runtime.sizes import parse_factor
from svdexp.schema import IMAGES, CalibrationConfig, Config
from svdexp.storage import Storage
from svdexp.training import Training
from svdexp.update import Update


@as_guest
def compress(
    model: str | PathLike[str] | PreTrainedModel,
    calibration: Text | Options | None = None,
    method: str | Method | None = None,
    ratio: float | None = None,
    *,
    bytes: str | None = None,
    ppl: str | None = None,
    ppl_text: object = None,
    tokenizer: Any = None,
    samples: int | None = None,
    seq_len: int | None = None,
    weighting: str | Options | Weighting | None = None,
    allocation: str | Options | Allocation | None = None,
    update: str | Options | Update | None = None,
    training: str | Options | Training | Sequence[str | Training] | None = None,
    storage: str | Options | Storage | None = None,
    targets: Targets | Options | None = None,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    elastic: bool = False,
    seed: int | None = None,
    device: str | torch.device | None = None,
    precision: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache: str | PathLike[str] | Cache | None = None,
) -> Result:
    """Compress a language model.

    Arguments are the options of conf/ by name, None leaves what conf/ says. A part of the method is the name of a
    choice, its options in a dictionary (`{"alpha": 0.3}`, or of another choice, `{"name": "dynamic", "alpha": 0.5}`),
    or an object of a class of yours. `svdexp.methods()` lists the methods.

    Args:
        model: a folder, a hub id, a .gguf file, a name in conf/model/, or a causal language model of transformers. A
            given model is compressed in place, on its device and in its format, so that nothing is copied; it may have
            gradients on and be in training mode. `copy.deepcopy(model)` keeps a dense one; so does a folder.
        calibration: the text that calibrates: a name in conf/calibration/, files, documents (a list of strings), or
            token ids (N, L). pydoc by default.
        method: a name in conf/method/ or a `svdexp.method.Method`; kron by default.
        ratio: kept fraction of the compressed layers' stored bits, in (0, 1]; 0.8 by default.
        bytes: in place of it, what the whole model may take: "300MB", "1.5GiB", or "0.6" of the dense model.
        ppl: in place of both, how near to the dense model: "1.05x" takes the smallest ratio, in hundredths, at which
            perplexity is at most 1.05 times the dense model's.
        ppl_text: what that is measured on, one text as `svdexp.evaluate` takes it, not the one that calibrates; pydoc's
            held-out part by default.
        tokenizer: of a given model, wanted where text calibrates; or a folder. Of a folder or hub id its own by
            default.
        samples, seq_len: how many calibration windows, of how many tokens. Of documents all, of 1024 tokens or, where
            they have fewer, in one.
        weighting, allocation, update, training, storage: parts in place of the method's own. Trainings may be several.
        targets: which layers: `{"include": ["*.mlp.*"], "exclude": [], "lm_head": False, "ranks": {}}`.
        experiment: a name in conf/experiment/, of those that are no sweeps.
        overrides: anything else, as on the command line: `["method.numerics=cholesky"]`.
        elastic: keep what it takes to load the saved model at any lower ratio, as save=elastic does.
        seed: of what is drawn at random; 0 by default.
        device, precision, revision, trust_remote_code: of a model that is loaded, as on the command line.
        cache: a folder where finished stages are found and left; by default what SVDEXP_CACHE names, else memory.

    Raises:
        UserError: anything that can be mended, in one sentence. What can be known before computing is raised before; a
            given model may be compressed in part after an error or an interrupt.
    """
    given = isinstance(model, PreTrainedModel)
    if given:
        refuse_moves(device=device, precision=precision, revision=revision)
    asked = Asked()
    asked.method(method, experiment)
    asked.parts(weighting=weighting, allocation=allocation, update=update, storage=storage)
    asked.training(training)
    own = asked.calibration(calibration)
    asked.size(ratio=ratio, bytes=bytes, ppl=ppl, overrides=overrides)
    require(ppl is not None or ppl_text is None, "ppl_text says what ppl is measured on: give ppl, too")
    asked.option("calibration.samples", samples)
    asked.option("calibration.seq_len", seq_len)
    asked.option("seed", seed)
    asked.option("device", device)
    asked.option("precision", precision)
    store = cache if isinstance(cache, Cache) else Cache(cache_folder(cache))
    asked.model(model, revision, trust_remote_code)
    asked.values |= targets_of(targets) | {
        "save": "elastic" if elastic else "none",
        "cache": str(store.folder) if store.folder else None,
    }
    asked.overrides += overrides
    if own is not None:
        _refuse_idle(overrides)
    config, built = asked.configured()
    said = {*asked.values, *keys_of(overrides)}
    cut_to = {key: getattr(config.calibration, key) for key in ("samples", "seq_len") if f"calibration.{key}" in said}

    clock = StageClock()
    with clock("load"):
        tokenizer = _tokenizer(config, tokenizer, given)
        target = None if ppl is None else _target(ppl, ppl_text, model, config, built, tokenizer)
        torch.manual_seed(config.seed)
        tokens, lessons = _material(config, built, own, tokenizer, cut_to, getattr(model, "config", None))
        texts = {"calibration": tokens} | {f"method.training.{name}": lesson for name, lesson in lessons.items()}
        if target:
            config.ppl, config.ppl_text = ppl, target.size.text
            refuse_known(target.size.text, target.text.windows, texts)
        dense = _dense(model, config)
        check_lengths(dense.model, window_lengths(config, built) | (target.lengths() if target else {}))
        check_ids(dense.model, texts | ({"ppl_text": target.text.windows} if target else {}), tokenizer)
    compression = compress_in_place(
        dense.model,
        tokens,
        built,
        target.size if target else size_of(config),
        targets=Targets(**vars(config.targets)),
        cache=store,
        clock=clock,
        seed=config.seed,
        texts=lessons,
        elastic=elastic,
        weights=dense.weights,
        perplexity=measured_on(target.text, target.size.text, None, store) if target else None,
    )
    return Result(
        model=dense.model,
        tokenizer=tokenizer,
        compression=compression,
        method=built,
        config=config,
        clock=clock,
        dense_fingerprint=dense.weights,
        loaded=not given,
    )


def _refuse_idle(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of calibration that a text which is given makes no use of."""
    used = ("calibration.samples", "calibration.seq_len", "calibration.bos")
    idle = [key for key in keys_of(overrides) if key.partition(".")[0] == "calibration" and key not in used]
    require(not idle, f"overrides: {', '.join(idle)}: no effect on documents or token ids, which calibrate as they are")


class Target(NamedTuple):
    """How near to the dense model, and on which windows."""

    size: NearDense
    text: Passage

    def lengths(self) -> dict[str, int]:
        """Of its windows, by what `check_lengths` calls it."""
        return {"ppl_text: the length of a window": self.text.windows.shape[1]}


def _tokenizer(config: Config, tokenizer: Any, given: bool) -> Any:
    """As it was given or, of a model that is loaded, its own.

    Raises:
        UserError: such a model cannot be had here, or is compressed already.
    """
    found = tokenizer_at(tokenizer, config.model.trust_remote_code)
    if given:
        return found
    resolve_device(config.device)
    require_dense(config.model)
    return tokenizer_of(config.model, config.cache) if found is None else found


def _dense(model: object, config: Config) -> Dense:
    """The dense model, given or loaded, and its fingerprint."""
    if isinstance(model, PreTrainedModel):
        return Dense(model, model_fingerprint(model))
    return placed_model(config, resolve_device(config.device))


def _target(ppl: str, text: object, model: object, config: Config, method: Method, tokenizer: Any) -> Target:
    """What a perplexity asks for, and the text that it is measured on.

    Raises:
        UserError: the method has no sizes to try, or it is not one text, or one that calibrates.
    """
    factor = parse_factor(ppl, "ppl")
    require_searchable(method)
    asked = questions(
        model if isinstance(model, PreTrainedModel) else config.model.path,
        text,
        None if text is None else [],
        tokenizer=tokenizer,
        speed=False,
        seed=config.seed,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    require(len(asked.texts) == 1, "ppl_text: one text that perplexity is measured on")
    refuse_known_texts(asked.config.eval, excerpts(config, method))
    (name,) = asked.texts
    return Target(NearDense(factor, name), asked.texts[name])


def _material(
    config: Config,
    method: Method,
    given: list[str] | torch.Tensor | None,
    tokenizer: Any,
    asked: Mapping[str, int],
    found: Any = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Windows (N, L) that calibrate, and those of trainings with a text of their own; the configuration is told.

    `asked`: how many windows, of which length, as far as that was said. `found`: a given model's own configuration.

    Raises:
        UserError: as `check_inputs`, or text without a tokenizer.
    """
    part = config.calibration
    if tokenizer is None and not (isinstance(given, torch.Tensor) and not method.excerpts):
        raise tokenizer_wanted("calibration" if not isinstance(given, torch.Tensor) else "a training's text")
    if given is None:
        require(
            part.text != IMAGES, "calibration='images' is for the command line: python -m svdexp calibration=images"
        )
        check_inputs(config, method, found)
        windows = calibration_windows(config, tokenizer)
    elif isinstance(given, torch.Tensor):
        require(not asked, "samples and seq_len have no effect on token ids: slice the tensor")
        windows = given
    else:
        windows = cut(given, tokenizer, calibration_bos(config, tokenizer), asked.get("samples"), asked.get("seq_len"))
    lessons = training_windows(config, method, tokenizer) if method.excerpts else {}
    if given is not None:
        config.calibration = CalibrationConfig("given", [], len(windows), windows.shape[1], bos=part.bos)
    return windows, lessons
