"""What can be said on a command line, as conf/ says it: groups, choices and keys with the YAML's own comments."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svdexp.cells.choices import config_dir
from svdexp.runtime.errors import UserError
from svdexp.runtime.nearest import did_you_mean

GROUP = re.compile(r"  (?:- (?:override )?|# )([\w/]+):(?: +([\w.-]+))? +# (.+)")
KEY = re.compile(r"(\w+):(?: +(.*?))?(?: +# (.*))?")


@dataclass(frozen=True)
class Entry:
    """A group, a choice or a key: its name, its value by default, and what its comment says."""

    name: str
    value: str
    says: str


def groups(config: str = "config") -> list[Entry]:
    """The groups of a configuration, in the order in which its defaults list names them."""
    lines = (Path(config_dir()) / f"{config}.yaml").read_text().splitlines()
    return [Entry(found[1], found[2] or "", found[3]) for line in lines if (found := GROUP.fullmatch(line))]


def keys(config: str = "config") -> list[Entry]:
    """The keys at the top of a configuration that have a comment, before or behind them: its first sentence."""
    found: list[Entry] = []
    above: list[str] = []
    for line in (Path(config_dir()) / f"{config}.yaml").read_text().splitlines():
        if line.startswith("# "):
            above.append(line[2:])
            continue
        if (key := KEY.fullmatch(line)) and (says := key[3] or first_sentence(above)) and key[1] != "defaults":
            found.append(Entry(key[1], key[2] or "", says))
        above = []
    return found


def choices(group: str) -> list[Entry]:
    """The choices of a group, by name, each with the first sentence of its comment.

    Raises:
        UserError: there is no such group.
    """
    folder, known = Path(config_dir()) / group, all_groups()
    if group not in known:
        raise UserError(f"there is no group {group}, only {', '.join(known)}{did_you_mean(group, known)}")
    return [Entry(path.stem, "", first_sentence(comment_of(path))) for path in sorted(folder.glob("*.yaml"))]


def all_groups() -> list[str]:
    """The folders of conf/ that hold choices, as a command line names them; how logs look is nobody's choice."""
    root = Path(config_dir())
    found = {str(path.parent.relative_to(root)) for path in root.rglob("*/*.yaml")}
    return sorted(group for group in found if not group.endswith("_logging"))


def comment_of(path: Path) -> list[str]:
    """The lines of the comment that a YAML file begins with, without Hydra's directives."""

    def lines() -> Iterator[str]:
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                return
            if not line.startswith("# @"):
                yield line.removeprefix("#").removeprefix(" ")

    return list(lines())


def first_sentence(lines: list[str]) -> str:
    """The first sentence of a comment; a comment without a full stop is one, up to a line that is indented."""
    prose: list[str] = []
    for line in lines:
        if line.startswith(" "):
            break
        prose.append(line)
    return re.split(r"(?<=\.)\s+(?=[A-Z`(])", " ".join(prose), maxsplit=1)[0].rstrip(".")
