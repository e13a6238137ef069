"""The choices of conf/ as data: what a part of a run is called there, and the options that a choice comes with."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from svdexp.runtime.reading import read_object
from svdexp.schema import Traversal

# The parts of a run that records name, by the folder of conf/ that has their choices.
GROUPS = {
    "weighting": "method/weighting",
    "allocation": "method/allocation",
    "update": "method/update",
    "storage": "storage",
}
# Classes in older records that are no choice any more, and what the choice was called.
FORMER = {"ElasticStorage": "elastic"}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of a run: the choice that it is, and all of its options."""

    name: str
    options: Options


def config_dir() -> str:
    """conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def part_of(group: str, values: Options) -> Part:
    """The choice that a composed part is, which has the class in `_target_`.

    Of several choices of one class it is the one that Hydra was told, then the one with most of these options. A class
    without a choice keeps its own name.
    """
    options = {key: value for key, value in values.items() if key != "_target_"}
    target = str(values["_target_"])
    chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
    return Part(_nearest(group, target, options, chosen) or target.rpartition(".")[2], options)


def part_in_words(group: str, words: str) -> Part:
    """The same of what older records say: the class and its options, `Diagonal(alpha=0.5, scale=abs_mean)`."""
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", words, re.DOTALL)
    if not found:
        return Part(words, {})
    split = re.split(r", (?=\w+=)", found[2]) if found[2] else []
    options = {key: _value(value) for key, _, value in (option.partition("=") for option in split)}
    return Part(_nearest(group, found[1], options) or FORMER.get(found[1], found[1]), options)


def own_options(group: str, name: str) -> Options | None:
    """The options that a choice comes with; None where there is no such choice."""
    found = _choices(group, _folders()).get(name)
    return None if found is None else {key: value for key, value in found.items() if key != "_target_"}


def own_parts(method: str) -> dict[str, str | None] | None:
    """The choices of weighting, allocation and update that a method is made of, and its traversal; None where there is
    no such method."""
    for folder in _folders():
        if (path := folder / "method" / f"{method}.yaml").is_file():
            content = _read(path)
            named = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
            chosen = {key: value for entry in named for key, value in entry.items() if key in GROUPS}
            return chosen | {"traversal": content.get("traversal", Traversal.dense.value)}
    return None


def published_config(path: str) -> Options | None:
    """The fields of config.json that lie beside the choice of conf/model/ with this `path`, in NAME.json; else None."""
    for folder in _folders():
        for choice in sorted((folder / "model").glob("*.yaml")):
            fields = choice.with_suffix(".json")
            if _read(choice).get("path") == path and fields.is_file():
                return read_object(fields)
    return None


def own_storage(method: str) -> str | None:
    """The storage that a method chooses itself; None where it leaves that to the run."""
    entries = _read(Path(config_dir()) / "method" / f"{method}.yaml").get("defaults", [])
    chosen = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    return next((str(value) for key, value in chosen.items() if key.startswith("override /storage@")), None)


def names_of(group: str) -> list[str]:
    """The choices of a group of conf/."""
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


def eval_choice(name: str) -> Options:
    """The keys of a choice of conf/eval/."""
    return _read(Path(config_dir()) / "eval" / f"{name}.yaml")


def model_path(name: str) -> str:
    """Where the choice of conf/model/ with this name finds its model."""
    return str(_read(Path(config_dir()) / "model" / f"{name}.yaml")["path"])


def in_words(name: str, options: Options) -> str:
    """`diagonal(alpha=0.5)`."""
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({said})" if said else name


def changed(group: str, part: Part) -> Options:
    """The options in which a part differs from its choice; all of them where there is no such choice."""
    own = own_options(group, part.name)
    return part.options if own is None else _differing(own, part.options)


def modern(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with parts by their choices' names, as runs write them now; older ones gave classes with options."""
    said: dict[str, Any] = {}
    for key, group in GROUPS.items():
        if (words := record.get(key)) and f"{key}_options" not in record:
            part = part_in_words(group, words)
            said |= {key: part.name, f"{key}_options": part.options}
    training = {
        name: entry | vars(part_in_words("method/training", entry["options"]))
        if isinstance(entry["options"], str)
        else entry
        for name, entry in record.get("training", {}).items()
    }
    return {**record, **said} | ({"training": training} if training else {})


def spoken(record: Mapping[str, Any], key: str) -> str | None:
    """A part of a run with the options in which it differs from the choice of its name; None where there is none."""
    if not record.get(key):
        return None
    part = Part(record[key], record.get(f"{key}_options") or {})
    return in_words(part.name, changed(GROUPS[key], part))


def _nearest(group: str, target: str, options: Options, chosen: str | None = None) -> str | None:
    """The name of a choice with this class, given as a path or by its name alone."""
    of_class = {
        name: values
        for name, values in _choices(group, _folders()).items()
        if target in (values.get("_target_"), str(values.get("_target_")).rpartition(".")[2])
    }
    if chosen in of_class:
        return chosen
    beyond = _beyond(group, _folders())

    def distance(name: str) -> int:
        return len(_differing(of_class[name], options)) + len(beyond[name] - options.keys())

    return min(of_class, key=lambda name: (distance(name), len(name), name), default=None)


def _differing(own: Options, options: Options) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in own or _plain(own[key]) != _plain(value)}


def _plain(value: Any) -> Any:
    """As JSON gives it back, whose keys are words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _value(words: str) -> Any:
    """What Python printed as `words`, where that is a number, a truth value, None, or a list or table of them."""
    try:
        return ast.literal_eval(words)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return words


def _folders() -> tuple[Path, ...]:
    """conf/, and what --config-dir adds to it in this process."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    added = [Path(source.path) for source in sources if source.schema == "file"]
    return tuple(dict.fromkeys([Path(config_dir()), *added]))


@cache
def _choices(group: str, folders: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """The choices of a group that are parts, by their names; of one that builds on another, what both say."""
    contents = _contents(group, folders)

    def merged(name: str) -> dict[str, Any]:
        below = {key: value for entry in _below(name, contents) for key, value in merged(entry).items()}
        return below | {key: value for key, value in contents[name].items() if key != "defaults"}

    return {name: values for name in contents if "_target_" in (values := merged(name))}


@cache
def _beyond(group: str, folders: tuple[Path, ...]) -> dict[str, frozenset[str]]:
    """By choice, the options that it says beside the choice that it builds on; nothing of one that builds on none."""
    contents = _contents(group, folders)
    return {
        name: frozenset(content.keys() - {"defaults"}) if _below(name, contents) else frozenset()
        for name, content in contents.items()
    }


def _below(name: str, contents: Mapping[str, dict[str, Any]]) -> list[str]:
    """The choices of its group that a choice builds on."""
    return [entry for entry in contents[name].get("defaults", []) if isinstance(entry, str) and entry in contents]


@cache
def _contents(group: str, folders: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What the files of a group's choices say, by their names."""
    return {path.stem: _read(path) for folder in folders for path in sorted((folder / group).glob("*.yaml"))}


def _read(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return content if isinstance(content, dict) else {}
