"""Tab completion: a few lines of shell that ask `svdexp --complete`, which answers from conf/ by Hydra's engine."""

import os
from collections.abc import Iterable
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from svdexp.command.subcommands import MODULES, OPTIONS
from svdexp.runtime.errors import UserError
from svdexp.runtime.nearest import did_you_mean

CONFIGURED = {"compress": "config", "evaluate": "evaluate", "export": "export"}
FLAGS = ("-m", "--cfg", "--help", "--list", "--version", "--config-dir", "--resolve")

# bash replaces what follows the last of COMP_WORDBREAKS, so what stands before it is cut off the answers.
BASH = r"""
_svdexp() {
    local line="${COMP_LINE:0:COMP_POINT}" breaks="${COMP_WORDBREAKS//[^=:]/}" head="" word answer
    word="${line##* }"
    [[ -n $breaks ]] && head="${word%"${word##*[$breaks]}"}"
    COMPREPLY=()
    while IFS= read -r answer; do
        COMPREPLY+=("${answer#"$head"}")
    done < <(COMP_LINE="$line" "${COMP_WORDS[0]}" --complete 2>/dev/null)
}
complete -o nospace -o default -F _svdexp svdexp
"""
SCRIPTS = {
    "bash": BASH.lstrip(),
    "zsh": "autoload -U +X bashcompinit && bashcompinit\nCOMP_WORDBREAKS=''\n" + BASH.lstrip(),
    "fish": "complete -c svdexp -f -a '(env COMP_LINE=(commandline -cp) svdexp --complete | string trim)'\n",
}


def script(shell: str = "bash") -> str:
    """What a shell is to read: `eval "$(svdexp --completion bash)"`.

    Raises:
        UserError: it is a shell that we know nothing of.
    """
    if shell not in SCRIPTS:
        raise UserError(f"--completion knows {', '.join(SCRIPTS)}, not {shell}{did_you_mean(shell, SCRIPTS)}")
    return SCRIPTS[shell].rstrip()


def answers() -> list[str]:
    """What may stand where the cursor is, given the line up to it in COMP_LINE; a whole word ends in a space."""
    line = os.environ.get("COMP_LINE", "").lstrip()
    _, *before = line.split(" ")
    words, current = [word for word in before[:-1] if word], before[-1] if before else ""
    if not words:
        return ended(word for word in (*MODULES, *OPTIONS) if word.startswith(current))
    return ended(after(words, current))


def after(words: list[str], current: str) -> Iterable[str]:
    """What may stand behind these words."""
    from svdexp.cells.catalogue import all_groups  # Hydra takes a second

    if words[-1] == "--list":
        return [group for group in all_groups() if group.startswith(current)]
    if words[-1] == "--completion":
        return [shell for shell in SCRIPTS if shell.startswith(current)]
    if words[0] not in CONFIGURED:
        return []  # files, which the shell knows
    if current.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(current)]
    return keys_and_choices(CONFIGURED[words[0]], words[1:], current)


def keys_and_choices(name: str, words: list[str], current: str) -> list[str]:
    """Groups, choices and keys of a configuration, of which a value that is one of a few is told in full."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from svdexp.cells.choices import config_dir
    from svdexp.cells.guard import CONFIGS

    schema = next(schema for schema, config in CONFIGS.items() if config == name)
    ConfigStore.instance().store(name="schema", node=schema)
    key, equals, value = current.partition("=")
    node = OmegaConf.create(OmegaConf.structured(schema))
    if equals and (values := values_of(node, key)):
        return [f"{key}={one}" for one in values if one.startswith(value)]
    loader = ConfigLoaderImpl(create_config_search_path(config_dir()))
    found: list[str] = DefaultCompletionPlugin(loader)._query(name, " ".join([*words, current]))
    return [word for word in found if word.startswith("hydra") <= current.startswith("h") and "_target_" not in word]


def values_of(schema: DictConfig, key: str) -> list[str]:
    """The values of a key that takes one of a few; none for others."""
    part, _, last = key.rpartition(".")
    parent = OmegaConf.select(schema, part) if part else schema
    node: Any = parent._get_node(last) if isinstance(parent, DictConfig) and last in parent else None
    kind = node._metadata.ref_type if node is not None else None
    if kind is bool:
        return ["true", "false"]
    return [str(one.value) for one in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def ended(words: Iterable[str]) -> list[str]:
    """The words, with a space behind those to which nothing can be added."""
    return [word if word.endswith(("=", ".", "/")) else f"{word} " for word in words]
