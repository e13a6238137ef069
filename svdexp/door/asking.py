"""Arguments of the Python door as what a command line would say, and parts that no command line can hold."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from svdexp.cells.choices import names_of
from svdexp.door.composing import composed, keys_of, plain, refuse_idle
from svdexp.door.texts import documents_in, files_in, windows_in
from svdexp.method import Method, build_method
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError, require
from svdexp.schema import Config, Save, validate

Options = Mapping[str, Any]
CACHE = "SVDEXP_CACHE"  # a folder, where no argument names one
# Keys of a run that this door has words of its own for.
ELSEWHERE = {
    "eval": "ask the result: .evaluate(…)",
    "save": "ask the result: .save(folder); elastic=True is save=elastic",
    "tracker": "a run from Python has none",
    "dry_run": "python -m svdexp dry_run=true estimates",
    "objective": "it is for sweeps",
    "ppl": "it is an argument, ppl=, and so is its text, ppl_text=",
    "ppl_text": "it is an argument, ppl_text=",
    "hydra": "there is no run folder",
}


@dataclass
class Asked:
    """What was asked for.

    Attributes:
        overrides: choices, as on a command line.
        values: options by their dotted keys.
        given: parts that are objects, by the fields of `Method`.
        whole: the method, where it is one object.
    """

    overrides: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    whole: Method | None = None

    def choose(self, group: str, value: object) -> None:
        """A choice of a group by its name, options of it by a dictionary, in which `name` is a choice, or nothing.

        Raises:
            UserError: it is something else.
        """
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = options.pop("name", None)
        if name is not None:
            require(isinstance(name, str), f"{group}={name!r} is neither a choice's name nor a dictionary of options")
            self.overrides.append(f"{group}={name}")
        self.values |= {f"{group.replace('/', '.')}.{key}": option for key, option in options.items()}

    def option(self, key: str, value: object) -> None:
        """A value of a dotted key; None leaves what conf/ says."""
        self.values |= {} if value is None else {key: plain_word(value)}

    def model(self, model: object, revision: str | None, trust_remote_code: bool) -> None:
        """Which model.

        Raises:
            UserError: it is nothing that is a model.
        """
        words, values = model_keys(model, revision, trust_remote_code)
        self.overrides = [*words, *self.overrides]
        self.values |= values

    def method(self, method: object, experiment: str | None) -> None:
        """A method by its name or as an object, and a recipe.

        Raises:
            UserError: it is neither.
        """
        self.overrides += [] if experiment is None else [f"experiment={experiment}"]
        if isinstance(method, Method):
            self.whole = method
        elif method is not None:
            require(isinstance(method, str), f"method: a name or a Method, not {type(method).__name__}")
            self.overrides.append(f"method={method}")

    def size(self, *, ratio: float | None, bytes: str | None, ppl: str | None, overrides: Sequence[str]) -> None:
        """How small the model shall be; a perplexity is looked after elsewhere.

        Raises:
            UserError: it is said twice.
        """
        given = {"ratio": ratio, "bytes": bytes, "ppl": ppl}
        said = [key for key in keys_of(overrides) if key in given]
        said += [key for key, value in given.items() if value is not None]
        require(len(said) < 2, "ratio, bytes and ppl say how small the model shall be: give one of them, once")
        self.option("ratio", ratio)
        self.option("bytes", bytes)

    def calibration(self, text: object) -> list[str] | torch.Tensor | None:
        """Ask for a text of conf/, or for files; what else calibrates: documents or token ids."""
        if isinstance(text, torch.Tensor):
            return windows_in(text, "calibration")
        if isinstance(text, Mapping) or text is None:
            self.choose("calibration", text or {})
            return None
        if files := files_in(text):
            self.choose("calibration", {"name": "files", "files": files})
            return None
        documents = documents_in(text)
        if documents is None:
            self.choose("calibration", text)
        return documents

    def parts(self, **parts: object) -> None:
        """Parts of the method by their stages."""
        for stage, part in parts.items():
            self.part(stage, part)

    def part(self, stage: str, value: object) -> None:
        """A part of the method: as `choose` takes it, or an object."""
        if value is None:
            return
        if isinstance(value, str | Mapping):
            self.choose(stage if stage == "storage" else f"method/{stage}", value)
        else:
            self.given[stage] = value

    def training(self, value: object) -> None:
        """Trainings: names, in order; options by name; objects; or nothing.

        Raises:
            UserError: names and objects are mixed.
        """
        if value is None:
            return
        entries: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        named = [entry for entry in entries if isinstance(entry, str | Mapping)]
        require(len(named) in (0, len(entries)), "training: give names or objects, not both")
        if not named:
            self.given["training"] = {_own_name(part): part for part in entries}
            return
        chosen = {name: options for entry in named for name, options in _with_options(entry).items()}
        self.overrides.append(f"method/training=[{','.join(chosen)}]")
        for name, options in chosen.items():
            self.values |= {f"method.training.{name}.{key}": option for key, option in options.items()}

    def configured(self) -> tuple[Config, Method]:
        """The checked configuration, and the method that it comes to.

        Raises:
            UserError: a value is missing, out of range, or contradicts another; or something has no effect.
            HydraException, OmegaConfBaseException: there is no such choice or key.
        """
        refuse_idle(self.overrides, ELSEWHERE)
        if self.whole is not None:
            self._refuse_beside_method()
        self._refuse_beside_parts()
        words = [*self.overrides, "tracker=none", "eval=ppl"]
        values = {**self.values, "eval.texts": []}
        config = validate(composed("config", Config, words, values))
        if self.whole is not None:
            method = self.whole
            if config.save is Save.elastic:
                method.require_elastic(config.targets.ranks)
        else:
            method = build_method(config, self.given)
        _note(config, method, self.given if self.whole is None else {key.name: True for key in fields(Method)})
        return config, method

    def _refuse_beside_method(self) -> None:
        idle = dict.fromkeys(("method", "storage"), "the method is given as one object; dataclasses.replace changes it")
        refuse_idle([word for word in self.overrides if not word.startswith("experiment")], idle)
        beside = [*self.given, *(key for key in self.values if key.partition(".")[0] in idle)]
        require(not beside, f"{', '.join(beside)}: no effect, because {idle['method']}")

    def _refuse_beside_parts(self) -> None:
        for key in keys_of(self.overrides):
            stage = key.replace("/", ".").removeprefix("method.").partition(".")[0].partition("@")[0]
            require(stage not in self.given, f"overrides: {key} has no effect, because {stage} is given as an object")


def _note(config: Config, method: Method, given: Mapping[str, Any]) -> None:
    """Let the configuration say what was given as objects."""
    parts = config.method
    if "weighting" in given:
        parts.weighting = as_options(method.weighting)
    if "allocation" in given:
        parts.allocation = as_options(method.allocation) or {}
    if "update" in given:
        parts.update = as_options(method.update)
    if "training" in given:
        parts.training = {name: as_options(part) for name, part in method.training.items()}
    if "storage" in given:
        config.storage = as_options(method.storage) or {}
    if "name" in given:
        parts.name, parts.traversal = method.name, method.traversal
        parts.numerics, parts.sigma_fuse = method.numerics, method.sigma_fuse


def as_options(part: object) -> dict[str, Any] | None:
    """A part as its YAML would have it."""
    if part is None:
        return None
    kind = type(part)
    options = {key.name: plain(getattr(part, key.name)) for key in fields(part)} if is_dataclass(part) else {}
    return {"_target_": _path_of(kind), **options}


def _path_of(kind: type) -> str:
    """A class by its dotted path: where its room offers it, as conf/ does, or where it stands."""
    room, name = kind.__module__.rpartition(".")[0], kind.__qualname__
    offered = getattr(sys.modules.get(room), name, None) is kind
    return f"{room if offered else kind.__module__}.{name}"


def targets_of(value: Targets | Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of conf/'s `targets`."""
    if value is None:
        return {}
    options = asdict(value) if isinstance(value, Targets) else dict(value)
    return {f"targets.{key}": option for key, option in options.items()}


def model_keys(model: object, revision: str | None, trust_remote_code: bool) -> tuple[list[str], dict[str, Any]]:
    """Which model: overrides and values of conf/'s `model`.

    Raises:
        UserError: it is nothing that is a model.
    """
    if isinstance(model, PreTrainedModel):
        path = model.name_or_path or type(model).__name__
        return [], {"model.path": path, "model.trust_remote_code": trust_remote_code}
    if not isinstance(model, str | PathLike):
        raise UserError(f"model: a folder, a hub id or a transformers model, not {type(model).__name__}")
    name = str(model)
    values: dict[str, Any] = {"model.trust_remote_code": trust_remote_code}
    values |= {} if revision is None else {"model.revision": revision}
    if isinstance(model, str) and name in names_of("model") and not Path(name).is_dir():
        return [f"model={name}"], values
    return [], values | {"model.path": name}


def refuse_moves(**options: object) -> None:
    """Raise UserError where one of `options`, which are for a model that is loaded, is set for one that is given."""
    for name, value in options.items():
        require(value is None, f"{name} has no effect on a model that is given; model.to(…) moves it")


def tokenizer_at(tokenizer: Any, trust_remote_code: bool) -> Any:
    """The tokenizer, which may be given as its folder, or within the processor of a model that sees."""
    if isinstance(tokenizer, str | PathLike):
        return AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
    inside = None if isinstance(tokenizer, PreTrainedTokenizerBase) else getattr(tokenizer, "tokenizer", None)
    return tokenizer if inside is None else inside


def cache_folder(cache: str | PathLike[str] | None) -> Path | None:
    """The folder of the cache: as asked, or what the environment names; None is memory."""
    found = os.environ.get(CACHE) if cache is None else cache
    return Path(found).expanduser() if found else None


def plain_word(value: object) -> object:
    """A device or a format by its name; anything else as it is."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.device | torch.dtype) else value


def _with_options(entry: str | Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The trainings that an entry names, with their options.

    Raises:
        UserError: it has options of no training.
    """
    if isinstance(entry, str):
        return {entry: {}}
    options = dict(entry)
    name = options.pop("name", None)
    chosen = options if name is None else {str(name): options}
    for training, its in chosen.items():
        fits = isinstance(its, Mapping)
        require(fits, f"training: {training}={its!r} is an option of which? Give {{'name': …, '{training}': {its!r}}}")
    return chosen


def _own_name(training: object) -> str:
    """What a training calls itself in its errors, or its class."""
    knob = getattr(training, "knob", None)
    return knob.rpartition(".")[2] if isinstance(knob, str) else type(training).__name__
