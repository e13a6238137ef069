"""Configurations of conf/ composed by Hydra in somebody else's process."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from svdexp.cells.choices import config_dir
from svdexp.runtime.errors import UserError, require


def composed(name: str, schema: type, overrides: Sequence[str], values: Mapping[str, Any]) -> DictConfig:
    """The configuration `name` of conf/ with `overrides`, as on a command line, and then `values` by their dotted keys.

    Raises:
        UserError: it is a sweep, or a key is below one that is null.
        HydraException, OmegaConfBaseException: as on a command line.
    """
    words = list(overrides)
    with hydra_of_ours(schema), hydra.initialize_config_dir(config_dir(), job_name="svdexp", version_base="1.3"):
        try:
            cfg = hydra.compose(name, words, return_hydra_config=True)
        except AssertionError as error:  # OmegaConf's, which Hydra lets through
            below = [key for key in keys_of(words) if "." in key]
            raise UserError(
                f"overrides: {' or '.join(below)} is below a key that is null here: give all of that, KEY={{…}}"
            ) from error
    _refuse_sweep(cfg, words, values)
    with open_dict(cfg):
        del cfg["hydra"]
        for key, value in values.items():
            put(cfg, key, plain(value))
    return cfg


def put(cfg: DictConfig, key: str, value: Any) -> None:
    """Set the value of a dotted key.

    Raises:
        UserError: there is no such key, or it is below one that is null, or the value is of another type.
    """
    try:
        OmegaConf.update(cfg, key, value, merge=True)
    except AssertionError as error:  # OmegaConf's
        above = key.rpartition(".")[0]
        raise UserError(f"{above} is null here, so {key} is an option of nothing: name the choice as well") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys or groups that `overrides` set."""
    return [override.get_key_element() for override in OverridesParser.create().parse_overrides(list(overrides))]


def plain(value: Any) -> Any:
    """A value as a configuration holds it; what it cannot hold is said in words."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


@contextmanager
def hydra_of_ours(schema: type) -> Iterator[None]:
    """Within this context Hydra knows `schema` and no application; then the caller's is as it was.

    Its own contexts refuse to begin inside of an application, and leave the version that they set.
    """
    Plugins.instance()  # whose modules put their nodes into the store, once a process
    before = dict(Singleton._instances)
    store = copy.copy(ConfigStore.instance())
    store.repo = dict(store.repo)
    for kind in (GlobalHydra, HydraConfig, VersionBase, ConfigStore):
        Singleton._instances.pop(kind, None)
    try:
        Singleton._instances[ConfigStore] = store  # type: ignore[assignment]
        store.store(name="schema", node=schema)
        yield
    finally:
        Singleton._instances.clear()
        Singleton._instances.update(before)


def _refuse_sweep(cfg: DictConfig, overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """Raise UserError for an experiment that is a sweep, unless every swept key has its value."""
    swept = (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).keys()
    missing = [key for key in swept if key not in (*keys_of(overrides), *values)]
    if missing:
        raise UserError(f"experiment: this one is a sweep; give one value for each of {', '.join(missing)}")


def refuse_idle(overrides: Sequence[str], idle: Mapping[str, str]) -> None:
    """Raise UserError for an override of a key, or of a key below it, that `idle` says something else about."""
    for key in keys_of(overrides):
        head = key.replace("/", ".").partition(".")[0].partition("@")[0]
        require(head not in idle, f"overrides: {key} has no effect here; {idle.get(head)}")
