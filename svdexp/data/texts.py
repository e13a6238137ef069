"""Read a text by name: which split, which rows, joined by what. What calibrates and what evaluates never overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from svdexp.data.collections import Collection
from svdexp.data.instructions import Row, parse_rows, plain_rows
from svdexp.data.sources import INSTRUCTIONS, LOCAL, TEXTS, Text, local_path, pydoc_path, read_file
from svdexp.runtime.errors import UserError
from svdexp.schema import COLLECTED

# What stands for the user's own files among the texts; they are read by their paths.
FILES = Text("files", lambda split: [], "all", ("all",))
# Files with these endings hold rows: one object a line in .jsonl, one array of objects in .json.
ROW_FILES = (".jsonl", ".json")
# All texts: `files` are the user's own, `hub` any data set, and `images` one of images with captions.
NAMES = (*TEXTS, "files", *COLLECTED)


class Split(StrEnum):
    """What a text is read for."""

    calibration = "calibration"
    evaluation = "evaluation"


@dataclass(frozen=True)
class Reading:
    """Which rows of a text are read and how they are joined; by default as the text itself does.

    Attributes:
        split: the data set's own name of the split, `validation` for instance.
        separator: what stands between two rows.
        rows: how many, from the first; None is all.
        collection: the data set behind the names `hub` and `images`.
        knob: the key that configures it, to blame in errors; None: calibration, or eval, by what it is read for.
    """

    split: str | None = None
    separator: str | None = None
    rows: int | None = None
    collection: Collection | None = None
    knob: str | None = None


AS_IS = Reading()


def read_text(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> str:
    """The text called `name`; `files` are the paths behind the name `files`, instruction data by their ending.

    Raises:
        UserError: unknown name or split, too few rows, missing, bad or empty file, or an unreachable hub.
    """
    return separator_of(name, split, reading).join(read_documents(name, split, files, reading))


def read_documents(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> list[str]:
    """The rows that `read_text` joins: one for each file, row of a data set, or instruction with its answer.

    Raises:
        UserError: as in `read_text`.
    """
    knob = _knob(split, reading)
    if name == "files":
        rows = [row for file in files for row in _file_texts(file, f"{knob}.files")]
    elif name in COLLECTED:
        rows = _collection(reading, knob).rows(knob)
    else:
        rows = _text(name, knob).read(split_of(name, split, reading))
    if reading.rows is not None:
        if len(rows) < reading.rows:
            raise UserError(f"{knob}.rows_by_text.{name}={reading.rows}, but the text has {len(rows)} rows")
        rows = rows[: reading.rows]
    if not any(row.strip() for row in rows):
        raise UserError(f"{knob}: the text {name} is empty" + (f" ({', '.join(files)})" if files else ""))
    return rows


def split_of(name: str, split: Split, reading: Reading = AS_IS) -> str:
    """The data set's own name of the split that is read; of `files` there is one, called `files`.

    Raises:
        UserError: the text has no such split, or it is the one that calibrates.
    """
    knob = _knob(split, reading)
    if name in COLLECTED:
        return _collection(reading, knob).split
    text = FILES if name == "files" else _text(name, knob)
    if split is Split.calibration:
        return text.calibrates
    wanted = reading.split or text.evaluates[0]
    if wanted not in text.evaluates:
        choices = ", ".join(text.evaluates)
        raise UserError(f"{knob}.split_by_text.{name}: {wanted} is no split that evaluates; choose from {choices}")
    return wanted


def separator_of(name: str, split: Split, reading: Reading = AS_IS) -> str:
    """What stands between two rows of the text called `name`."""
    if reading.separator is not None:
        return reading.separator
    return TEXTS[name].calibration_separator if name in TEXTS and split is Split.calibration else "\n\n"


def dataset_of(name: str, files: Sequence[str] = (), reading: Reading = AS_IS) -> str:
    """What the text called `name` is where it comes from: a hub id with its configuration, or files."""
    if name in COLLECTED:
        return _collection(reading, "eval").name
    return ", ".join(files) if name == "files" else _text(name, "eval").dataset


def read_rows(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> list[Row]:
    """The rows of the instruction data called `name`; of all `files` one after the other behind the name `files`.

    Raises:
        UserError: as in `read_text`, or the text is no instruction data.
    """
    require_rows(name, split, files, reading)
    knob = _knob(split, reading)
    if name == "files":
        rows = [row for file in files for row in _file_rows(file, f"{knob}.files")]
    else:
        rows = INSTRUCTIONS[name](split_of(name, split, reading))
    if not rows:
        raise UserError(f"{knob}: the text {name} is empty")
    return rows


def check_text(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> None:
    """Raise UserError now for a mistake that reading would find later: cheap, and never downloads."""
    knob = _knob(split, reading)
    wanted = split_of(name, split, reading)
    if name == "files":
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{knob}.files: {file} is not a file")
    elif name in COLLECTED:
        _collection(reading, knob).check(knob)
    elif name in LOCAL:
        local_path(name, wanted)


def files_of(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> list[Path]:
    """The local files that the text called `name` is read from; of a text from the hub there are none.

    Raises:
        UserError: as in `check_text`.
    """
    check_text(name, split, files, reading)
    if name == "files":
        return [Path(file) for file in files]
    if name in COLLECTED:
        return _collection(reading, _knob(split, reading)).files
    if name in LOCAL:
        return [local_path(name, split_of(name, split, reading))]
    return [pydoc_path()] if name == "pydoc" else []


def characters_of(name: str, files: Sequence[str] = (), reading: Reading = AS_IS) -> int:
    """How many characters of the text called `name` evaluate: of one on the hub about, of another as it is read.

    Raises:
        UserError: as in `read_text`.
    """
    size = TEXTS[name].size if name in TEXTS else None
    if size is None:
        return len(read_text(name, Split.evaluation, files, reading))
    rows, characters = size
    return characters * min(reading.rows or rows, rows) // rows


def whole_files(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> list[Path]:
    """Those of `files_of` that are one split alone; pydoc's file holds both, and so may those of a data set."""
    shared = name == "pydoc" or (name in COLLECTED and not _collection(reading, _knob(split, reading)).is_one_file)
    return [] if shared else files_of(name, split, files, reading)


def require_rows(name: str, split: Split, files: Sequence[str] = (), reading: Reading = AS_IS) -> None:
    """Raise UserError unless the text called `name` is instruction data."""
    others = [file for file in files if Path(file).suffix not in ROW_FILES] if name == "files" else [name]
    for other in others:
        if other not in INSTRUCTIONS:
            raise UserError(
                f"{_knob(split, reading)}.chat=true: {other} is no instruction data; "
                f"choose {', '.join(INSTRUCTIONS)} or files that end in {' or '.join(ROW_FILES)}"
            )


def _collection(reading: Reading, knob: str) -> Collection:
    if reading.collection is None:
        where = "calibration=hub" if knob == "calibration" else "eval.texts=[hub]"
        raise UserError(f"{where} needs {knob}.dataset: a hub id, a folder or a file")
    return reading.collection


def _knob(split: Split, reading: Reading) -> str:
    return reading.knob or ("calibration" if split is Split.calibration else "eval")


def _text(name: str, knob: str) -> Text:
    if name not in TEXTS:
        where = "eval.texts" if knob == "eval" else f"{knob}.text"
        raise UserError(f"{where}: no text is called {name!r}; choose from {', '.join(NAMES)}")
    return TEXTS[name]


def _file_texts(file: str, knob: str) -> list[str]:
    return plain_rows(_file_rows(file, knob)) if Path(file).suffix in ROW_FILES else [read_file(Path(file), knob)]


def _file_rows(file: str, knob: str) -> list[Row]:
    path = Path(file)
    return parse_rows(read_file(path, knob), f"{knob}: {path}", per_line=path.suffix == ".jsonl")
