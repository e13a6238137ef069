"""The tasks that lm-eval brings, and those of the user's own in its format, by name: found without importing it."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# In a task's YAML: its name, or that of a group of tasks, or the tags that it is one of.
NAME = re.compile(r"""^["']?(?:task|group)["']?:[ \t]*["']?([^\s"'#\[\]{}]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
TAGS = re.compile(r"""^["']?tag["']?:[ \t]*(?:\n((?:[ \t]*-[ \t]*\S+[ \t]*\n)+)|\[?([^\n\]]+)\]?$)""", re.MULTILINE)


def library() -> Path:
    """The folder of lm-eval's own tasks."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@cache
def definitions(folder: Path) -> dict[str, Path]:
    """The file that defines each task or group below `folder`, by its name."""
    found: dict[str, Path] = {}
    for path, text in _texts(folder):
        found |= {name: path for name in NAME.findall(text) if name not in found}
    return found


@cache
def tags(folder: Path) -> frozenset[str]:
    """The tags below `folder`, each of which stands for several tasks."""
    found: set[str] = set()
    for _, text in _texts(folder):
        for lines, line in TAGS.findall(text):
            found |= {word.strip(" -\"'\t") for word in (lines.split("\n") if lines else line.split(","))}
    return frozenset(found - {""})


def _texts(folder: Path) -> list[tuple[Path, str]]:
    return [(path, path.read_text(encoding="utf-8", errors="replace")) for path in sorted(folder.rglob("*.yaml"))]
