"""Find what runs left: records, layers, and cells without a record."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdexp.errors import UserError
from svdexp.reading import read_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """A cell that was begun and has no record.

    Attributes:
        folder: of the cell.
        reason: the error that ended it, or that nothing is known of its end.
    """

    folder: Path
    reason: str


def read(folders: Sequence[Path], gone: Sequence[Missing] = ()) -> list[Record]:
    """The records of compressions below `folders`, and in `folder` where each lies; standalone evaluations are passed
    over.

    Raises:
        UserError: there is none, or one is unreadable; says how the first of `gone` ended.
    """
    records = [record | {"folder": str(path.parent)} for path in _found(folders) if "method" in (record := load(path))]
    if not records:
        where = ", ".join(map(str, folders)) or "no folder: name one"
        ended = f"; {len(gone)} cells have none, the first {gone[0].reason}" if gone else ""
        raise UserError(f"no results.json of a compression below {where}{ended}")
    return sorted(records, key=lambda r: (r["model"], r["method"], r["storage"], r.get("allocation", ""), -r["ratio"]))


def load(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it cannot be read.
    """
    return read_json(path)


def missing(folders: Iterable[Path]) -> list[Missing]:
    """The cells below `folders` that Hydra began and that left no results.json, with the error where one is written."""
    begun = {path.parent.parent for folder in folders for path in folder.rglob(".hydra/config.yaml")}
    return [Missing(cell, _reason(cell)) for cell in sorted(begun) if not (cell / "results.json").exists()]


def layers(folder: Path) -> list[dict[str, Any]]:
    """The rows of layers.json; of an older run those that ranks.json gives, without shapes and errors; else none."""
    if (folder / "layers.json").exists():
        rows: list[dict[str, Any]] = load(folder / "layers.json")
        return rows
    if not (folder / "ranks.json").exists():
        return []
    return [{"name": name, **_place(name), "rank": rank} for name, rank in load(folder / "ranks.json").items()]


def _found(folders: Iterable[Path]) -> list[Path]:
    return sorted({path for folder in folders for path in folder.rglob("results.json")})


def _reason(cell: Path) -> str:
    if not (cell / "failed.json").exists():
        return "unfinished: neither results nor an error"
    try:
        said = load(cell / "failed.json")
    except UserError:
        return "failed; failed.json cannot be read"
    return f"failed: {said.get('error', said) if isinstance(said, dict) else said}"


def _place(name: str) -> dict[str, Any]:
    """Block and projection by the name alone: the first number counts the blocks."""
    found = re.search(r"\.(\d+)\.(.+)", name)
    return {"block": int(found[1]), "projection": found[2]} if found else {"block": None, "projection": name}
