"""What distinguishes one cell from another, and the folder names made of it. Quick: without torch."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from svdexp.runtime.model_names import name_of

# Keys that change no figure.
INCIDENTAL = (
    "cache",  # where finished stages lie
    "objective",  # which figure a sweeper looks at
    "residency",  # whether all weights are in memory at once
    "dry_run",  # a dry run has no results
    "save",  # a checkpoint beside the figures; whether it is there is looked at apart
    "tracker",  # where the figures are sent
)

# Keys that came later, by group (none: the top), with the values that say what was done before there were any: so the
# cells of earlier versions are found again.
TEXT = {"dataset": None, "subset": None, "column": "text"}
LATER: dict[str, dict[str, Any]] = {
    "": {"bytes": None, "ppl": None, "ppl_text": None},
    "calibration": {**TEXT, "split": "train", "parts": [], "shares": []},
    "eval": {**TEXT, "split": "test", "include_path": None},
}
LATER_IN_SPEED = {"cache": "plain"}  # of eval.efficiency
# The same of parts, by their class.
MEASURED = {"measured": None, "windows": 2, "length": 256, "depth": 0}
STORED = {"stored": False}
GRID = {"zero_points": False, "fit": False}
LATER_IN_PARTS: dict[str, dict[str, Any]] = {
    "svdexp.allocation.GlobalLoss": MEASURED,
    "svdexp.allocation.TruncationLoss": MEASURED,
    "svdexp.storage.RTNStorage": GRID,
    "svdexp.storage.GPTQStorage": GRID,
    "svdexp.storage.ResidualStorage": {"fit": False},
    "svdexp.training.BlockRefine": STORED,
    "svdexp.training.Distill": {**STORED, "text": None, "files": [], "chat": False, "samples": None},
}
LONGEST = 80  # bytes of a word in a folder's name; file systems take 255 in all
LONGEST_LABEL = 160  # bytes of all words


def relevant(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration, as plain dictionaries, that change what a run gives by more than rounding.

    `device` stays without its number, because cuda:1 computes what cuda:0 does; `auto` stays `auto`, so that a sweep
    can be looked at from a machine without GPUs. `eval.batch_size` only says how many windows go through at once.
    """
    kept = {key: value for key, value in values.items() if key not in INCIDENTAL}
    kept["device"] = str(kept["device"]).partition(":")[0]
    kept["eval"] = {key: value for key, value in kept["eval"].items() if key != "batch_size"}
    if speed := kept["eval"].get("efficiency"):
        kept["eval"]["efficiency"] = _as_before(LATER_IN_SPEED, speed)
    known = {key: _as_before(LATER[key], value) if key in LATER else value for key, value in kept.items()}
    return _parts_as_before(_as_before(LATER[""], known))


def _parts_as_before(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group, and all in it, whose parts are without the options that came later and say nothing."""
    known = _as_before(LATER_IN_PARTS.get(str(group.get("_target_")), {}), group)
    return {key: _parts_as_before(value) if isinstance(value, dict) else value for key, value in known.items()}


def _as_before(later: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without the keys that came later and say nothing."""
    return {key: value for key, value in group.items() if key not in later or value != later[key]}


def cell_name(*words: object, _root_: DictConfig) -> str:
    """The words, and eight digits that differ wherever a relevant key of the configuration does.

    A name depends on the configuration alone: not on the job's number, the machine, or the contents of files.
    """
    return f"{joined(*words)}_{digits_of(_root_)}"


def digits_of(cfg: DictConfig) -> str:
    """Eight digits of all keys of a composed configuration that change a result."""
    text = json.dumps(relevant(plain(cfg)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(cells: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each cell of a sweep, given by its overrides, the keys in which cells differ, with its values.

    Keys are as short as they are clear: `samples` of calibration.samples, unless another key ends in it, too. A model
    is named after its path.
    """
    values = [dict(word.lstrip("+").split("=", 1) for word in words if "=" in word) for words in cells]
    keys = [key for key in dict.fromkeys(key for cell in values for key in cell) if not key.startswith("hydra")]
    apart = [key for key in keys if len({cell.get(key) for cell in values}) > 1]
    ends = Counter(re.split(r"[./]", short(key))[-1] for key in apart)
    names = {key: end if ends[end := re.split(r"[./]", short(key))[-1]] == 1 else key for key in apart}
    return [{names[key]: said(key, cell[key]) for key in apart if key in cell} for cell in values]


def short(key: str) -> str:
    """What a key is called: `model` for model.path."""
    return key.removesuffix(".path") or key


def said(key: str, value: str) -> str:
    """A value of an override as a person says it: without quotes, a path by its last component."""
    bare = value.strip("'\"")
    return name_of(bare) if key.rpartition(".")[2] == "path" else bare


def folder_for(found: Mapping[str, str], digits: str, sweep: Path) -> str:
    """The name of a cell's folder in a sweep's: `KEY-VALUE_…` of what tells it apart, and its digits.

    A folder there with these digits keeps its name, so that a grid may grow along another key, and sweeps whose folders
    were named otherwise are still found. There is neither `=` nor `,` in a name, which Hydra would want in quotes.
    """
    known = sorted(path.name for path in sweep.glob(f"*_{digits}") if path.is_dir())
    label = joined(*(f"{key}-{value}" for key, value in found.items()))
    return known[0] if known else f"{label.encode()[:LONGEST_LABEL].decode(errors='ignore')}_{digits}"


def joined(*words: object) -> str:
    """The words as part of a folder's name: without what a file system or a shell minds, and not too long for it."""
    plain = (re.sub(r"[^\w.+-]+", "-", str(word)).strip("-.") for word in words)
    return "_".join(word.encode()[:LONGEST].decode(errors="ignore") for word in plain)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain dictionaries, without Hydra's part; the model's name is what it comes to."""
    values: Any = OmegaConf.to_container(cfg, enum_to_str=True)
    values.pop("hydra", None)
    if "model" in values:
        values["model"]["name"] = cfg.model.name
    return dict(values)


def size_in_words(ratio: object, whole: object, ppl: object = None) -> object:
    """What says how small the model shall be."""
    asked = (f"ppl-{ppl}" if ppl is not None else None, whole, ratio)
    return next(value for value in asked if value is not None)


def register_names() -> None:
    """Make ${cell:WORD,…}, ${words:WORD,…} and ${size:RATIO,BYTES,PPL} known to configurations."""
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("words", joined, replace=True)
    OmegaConf.register_new_resolver("size", size_in_words, replace=True)
