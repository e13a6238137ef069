"""Find what runs left: records, layers, and cells without a record."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svdexp.cells.choices import modern
from svdexp.record import RESULTS
from svdexp.record import results as keys
from svdexp.report.models import labels, relatives
from svdexp.report.sound import evaluation_fault, fault, layers_fault
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_json

Record = dict[str, object]  # a modern record with `folder`, `label` and `written`


@dataclass(frozen=True)
class Missing:
    """A folder that the report cannot count, or not whole.

    Attributes:
        folder: of the cell.
        reason: the error that ended it, that nothing is known of its end, or what is wrong with a file of its.
    """

    folder: Path
    reason: str


def survey(folders: Sequence[Path]) -> tuple[list[Record], list[Missing]]:
    """The records of compressions below `folders`, sorted, and what is there without a sound one.

    A record has in `folder` where it lies, in `label` its model's name, with what tells other weights of that name
    apart, and in `written` when its file was. Standalone evaluations are passed over: `standalone`.

    Raises:
        UserError: there is no record, nor one of those; says how the first cell without one ended.
    """
    records, gone = [], missing(folders)
    for path in _found(folders):
        try:
            record = read_json(path)
        except UserError as error:
            gone.append(Missing(path.parent, str(error)))
            continue
        is_standalone = isinstance(record, dict) and is_evaluation(record)
        if reason := evaluation_fault(record) if is_standalone else fault(record):
            gone.append(Missing(path.parent, f"{RESULTS} is malformed: {reason}"))
        elif not is_standalone:
            records.append(_placed(modern(record), path))
    if not records and not standalone(folders, []):
        where = ", ".join(map(str, folders)) or "no folder: name one"
        ended = f"; {len(gone)} cells have none, the first {gone[0].reason}" if gone else ""
        raise UserError(f"no {RESULTS} of svdexp's below {where}{ended}")
    labelled = [record | {"label": label} for record, label in zip(records, labels(records), strict=True)]
    order = ("label", *(key.name for key in (keys.METHOD, keys.STORAGE, keys.ALLOCATION)))
    return sorted(labelled, key=lambda r: (*(str(r.get(key) or "") for key in order), -keys.RATIO.of(r))), gone


def standalone(folders: Sequence[Path], records: Sequence[Record]) -> list[Record]:
    """The sound records of models that were measured as they are below `folders`, sorted by their paths.

    One bears the label of the runs among `records` that compressed the weights that it measured, or a model of its
    name, where only one has that.
    """
    found = []
    for path in _found(folders):
        try:
            record = read_json(path)
        except UserError:
            continue  # `survey` says so
        if isinstance(record, dict) and is_evaluation(record) and not evaluation_fault(record):
            found.append(_placed(record, path))
    labelled = [record | {"label": label} for record, label in zip(found, relatives(found, records), strict=True)]
    return sorted(
        labelled, key=lambda record: (str(record["label"]), str(keys.MODEL_PATH.get(record)), record["folder"])
    )


def is_evaluation(record: Mapping[str, object]) -> bool:
    """Whether it is of a model that was measured as it is."""
    return keys.MODEL.name in record and not {keys.METHOD.name, keys.RATIO.name} & record.keys()


def missing(folders: Iterable[Path]) -> list[Missing]:
    """The cells below `folders` that Hydra began and that left no results.json, with the error where one is written."""
    begun = {path.parent.parent for folder in folders for path in folder.rglob(".hydra/config.yaml")}
    return [Missing(cell, _reason(cell)) for cell in sorted(begun) if not (cell / RESULTS).exists()]


def layers(folder: Path) -> list[dict[str, Any]]:
    """The rows of layers.json; of an older run those that ranks.json gives, without shapes and errors; else none.

    Raises:
        UserError: they cannot be read, or are malformed.
    """
    name = next((name for name in ("layers.json", "ranks.json") if (folder / name).exists()), None)
    if name is None:
        return []
    found = read_json(folder / name)
    if name == "ranks.json" and isinstance(found, dict):
        found = [{"name": layer, **_place(layer), "rank": rank} for layer, rank in found.items()]
    if reason := layers_fault(found):
        raise UserError(f"{name} is malformed: {reason}")
    return list(found)


def _placed(record: Mapping[str, object], path: Path) -> Record:
    """The record with where it lies and when it was written there, in this machine's minutes."""
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).astimezone()
    return {**record, "folder": str(path.parent), "written": f"{written:%Y-%m-%d %H:%M}"}


def _found(folders: Iterable[Path]) -> list[Path]:
    return sorted({path for folder in folders for path in folder.rglob(RESULTS)})


def _reason(cell: Path) -> str:
    if not (cell / "failed.json").exists():
        return "unfinished: neither results nor an error"
    try:
        said = read_json(cell / "failed.json")
    except UserError:
        return "failed; failed.json cannot be read"
    return f"failed: {said.get('error', said) if isinstance(said, dict) else said}"


def _place(name: str) -> dict[str, Any]:
    """Block and projection by the name alone: the first number counts the blocks."""
    found = re.search(r"\.(\d+)\.(.+)", name)
    return {"block": int(found[1]), "projection": found[2]} if found else {"block": None, "projection": name}
