"""Compress a model from Python: the arguments are the options of conf/, and the run's own checks and steps."""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.allocation import Allocation
from svdexp.checkpoints.loading import require_dense, resolve_device
from svdexp.door.asking import Asked, cache_folder, model_keys, plain_word, refuse_moves, targets_of, tokenizer_at
from svdexp.door.composing import keys_of
from svdexp.door.guest import as_guest
from svdexp.door.result import Result
from svdexp.door.texts import Text, cut, documents_in, files_in, tokenizer_wanted, windows_in
from svdexp.engine.compress import compress as compress_in_place
from svdexp.factorisation import Weighting
from svdexp.method import Method
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.structure import Targets
from svdexp.runs.checks import check_ids, check_inputs, check_lengths, window_lengths
from svdexp.runs.converted import Dense, tokenizer_of
from svdexp.runs.inputs import calibration_bos, calibration_windows, placed_model, size_of, training_windows
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import require
from svdexp.runtime.shelves import Cache
from svdexp.schema import CalibrationConfig, Config
from svdexp.storage import Storage
from svdexp.training import Training
from svdexp.update import Update

log = logging.getLogger(__name__)

Options = Mapping[str, Any]


@as_guest
def compress(
    model: str | PathLike[str] | PreTrainedModel,
    calibration: Text | Options | None = None,
    method: str | Method | None = None,
    ratio: float | None = None,
    *,
    bytes: str | None = None,
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
    asked = Asked(whole=method if isinstance(method, Method) else None)
    words, values = model_keys(model, revision, trust_remote_code)
    asked.overrides += words
    if experiment is not None:
        asked.overrides.append(f"experiment={experiment}")
    if isinstance(method, str):
        asked.overrides.append(f"method={method}")
    else:
        require(method is None or asked.whole is not None, f"method: a name or a Method, not {type(method).__name__}")
    parts = {"weighting": weighting, "allocation": allocation, "update": update, "storage": storage}
    for stage, part in parts.items():
        asked.part(stage, part)
    asked.training(training)
    windows = _calibration(asked, calibration)
    sizes = [key for key in keys_of(overrides) if key in ("ratio", "bytes")]
    sizes += [key for key, value in {"ratio": ratio, "bytes": bytes}.items() if value is not None]
    require(len(sizes) < 2, "ratio and bytes say how small the model shall be: give one of them, once")
    known = {"ratio": ratio, "bytes": bytes, "seed": seed, "device": device, "precision": precision}
    known |= {"calibration.samples": samples, "calibration.seq_len": seq_len}
    asked.values |= values | {key: plain_word(value) for key, value in known.items() if value is not None}
    asked.values |= targets_of(targets) | {"save": "elastic" if elastic else "none"}
    store = cache if isinstance(cache, Cache) else Cache(cache_folder(cache))
    asked.values["cache"] = str(store.folder) if store.folder else None
    asked.overrides += overrides
    if given:
        refuse_moves(device=device, precision=precision, revision=revision)
    config, built = asked.configured()

    torch.manual_seed(config.seed)
    clock = StageClock()
    with clock("load"):
        tokenizer = tokenizer_at(tokenizer, trust_remote_code)
        device = None
        if not given:
            device = resolve_device(config.device)
            require_dense(config.model)
            tokenizer = tokenizer_of(config.model, config.cache) if tokenizer is None else tokenizer
        tokens, lessons = _material(config, built, windows, tokenizer, (samples, seq_len))
        dense = Dense(model, model_fingerprint(model)) if isinstance(model, PreTrainedModel) else None
        if dense is None:
            assert device is not None
            dense = placed_model(config, device)
        check_lengths(dense.model, window_lengths(config, built))
        texts = {"calibration": tokens} | {f"method.training.{name}": own for name, own in lessons.items()}
        check_ids(dense.model, texts, tokenizer)
    compression = compress_in_place(
        dense.model,
        tokens,
        built,
        size_of(config),
        targets=Targets(**vars(config.targets)),
        cache=store,
        clock=clock,
        seed=config.seed,
        texts=lessons,
        elastic=elastic,
        weights=dense.weights,
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


def _calibration(asked: Asked, calibration: object) -> list[str] | torch.Tensor | None:
    """Ask for a text of conf/, or for files; what else calibrates: documents or token ids."""
    if isinstance(calibration, torch.Tensor):
        return windows_in(calibration, "calibration")
    if isinstance(calibration, Mapping) or calibration is None:
        asked.choose("calibration", calibration or {})
        return None
    if files := files_in(calibration):
        asked.choose("calibration", {"name": "files", "files": files})
        return None
    documents = documents_in(calibration)
    if documents is None:
        asked.choose("calibration", calibration)
    return documents


def _material(
    config: Config,
    method: Method,
    given: list[str] | torch.Tensor | None,
    tokenizer: Any,
    asked: tuple[int | None, int | None],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Windows (N, L) that calibrate, and those of trainings with a text of their own; the configuration is told.

    `asked`: how many windows, of which length; None: not said.

    Raises:
        UserError: as `check_inputs`, or text without a tokenizer.
    """
    part = config.calibration
    if tokenizer is None and not (isinstance(given, torch.Tensor) and not method.excerpts):
        raise tokenizer_wanted("calibration" if not isinstance(given, torch.Tensor) else "a training's text")
    if given is None:
        check_inputs(config, method)
        windows = calibration_windows(config, tokenizer)
    elif isinstance(given, torch.Tensor):
        require(asked == (None, None), "samples and seq_len have no effect on token ids: slice the tensor")
        windows = given
    else:
        windows = cut(given, tokenizer, calibration_bos(config, tokenizer), *asked)
    lessons = training_windows(config, method, tokenizer) if method.excerpts else {}
    if given is not None:
        config.calibration = CalibrationConfig("given", [], len(windows), windows.shape[1], part.sampling, part.bos)
    return windows, lessons
