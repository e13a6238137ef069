"""What distinguishes one cell from another, and the folder names made of it. Quick: without torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Keys that change no figure.
INCIDENTAL = (
    "cache",  # where finished stages lie
    "objective",  # which figure a sweeper looks at
    "dry_run",  # a dry run has no results
    "save",  # a checkpoint beside the figures; whether it is there is looked at apart
    "tracker",  # where the figures are sent
)


LONGEST = 80  # bytes of a word in a folder's name; file systems take 255 in all


def relevant(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration, as plain dictionaries, that change what a run gives by more than rounding.

    `device` stays without its number, because cuda:1 computes what cuda:0 does; `auto` stays `auto`, so that a sweep
    can be looked at from a machine without GPUs. `eval.batch_size` only says how many windows go through at once.
    """
    kept = {key: value for key, value in values.items() if key not in INCIDENTAL}
    kept["device"] = str(kept["device"]).partition(":")[0]
    kept["eval"] = {key: value for key, value in kept["eval"].items() if key != "batch_size"}
    return kept


def cell_name(*words: object, _root_: DictConfig) -> str:
    """The words, and eight digits that differ wherever a relevant key of the configuration does.

    A name depends on the configuration alone: not on the job's number, the machine, or the contents of files.
    """
    values = plain(_root_)
    text = json.dumps(relevant(values), sort_keys=True, default=str)
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{joined(*words)}_{digits}"


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


def register_names() -> None:
    """Make ${cell:WORD,…} and ${words:WORD,…} known to configurations."""
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("words", joined, replace=True)
