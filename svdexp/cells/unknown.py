"""Groups, choices and keys that there are not: Hydra's words about them in ours, with what was perhaps meant."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svdexp.cells.catalogue import all_groups
from svdexp.cells.choices import config_dir
from svdexp.runtime.invocation import MAIN, subcommand
from svdexp.runtime.nearest import did_you_mean

NO_KEY = re.compile(r"Could not (?:override|delete from config\.|append to config\.)[^']*'([^']+)'")


def unknown(error: ConfigCompositionException) -> str | None:
    """The sentence about an error of this kind; None for others."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group not in all_groups() or error.options is None:
            return None
        near = did_you_mean(choice, error.options)
        return f"{group} has no choice {choice}, only {', '.join(error.options)}{near}"
    found = NO_KEY.match(str(error))
    if found is None or found[1].startswith("hydra."):
        return None
    key, cfg = found[1], composed()
    if is_table(OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else None):
        return f"{key} is new in its table, so it takes a plus: +{key}=…"
    kind, known = ("group", all_groups()) if "/" in key else ("key", [*keys_of(cfg), *all_groups()])
    return f"there is no {kind} {key}{did_you_mean(key, known)}"


def below_null(words: Sequence[str]) -> str | None:
    """The sentence about the first of some overrides whose key is below one that is null; None where there is none.

    Hydra lets OmegaConf's assertion about it through.
    """
    cfg = composed()
    for key in (word.partition("=")[0].lstrip("+~") for word in words if "." in word.partition("=")[0]):
        above = key.rpartition(".")[0]
        if "/" not in key and OmegaConf.select(cfg, above, default=cfg) is None:
            return (
                f"{above} is null here, so there is no {key}: give all of it, {above}={{{key.rpartition('.')[2]}: …}}"
            )
    return None


def composed() -> DictConfig:
    """What the command line's choices come to without its keys; the defaults where they come to nothing."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode

    loader = ConfigLoaderImpl(create_config_search_path(config_dir()))
    chosen = [word for word in sys.argv[1:] if word.partition("=")[0].lstrip("+") in all_groups() and "," not in word]
    name = subcommand()
    for words in (chosen, []):
        try:
            return loader.load_configuration("config" if name == MAIN else name, words, RunMode.RUN)
        except (ConfigCompositionException, OmegaConfBaseException):
            continue
    return OmegaConf.create({})


def is_table(node: Any) -> bool:
    """Whether a node of the configuration takes any key: a table of values of one type."""
    return isinstance(node, DictConfig) and node._metadata.element_type is not Any and OmegaConf.get_type(node) is dict


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, those below others with dots; Hydra's own are not among them."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return []
    names = [str(key) for key in node if key != "hydra" and key != "_target_"]
    below = [key for name in names for key in keys_of(node._get_node(name), f"{prefix}{name}.")]
    return [f"{prefix}{name}" for name in names] + below
