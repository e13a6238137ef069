"""Texts by name, each with a calibration and an evaluation split that never overlap.

A text is a function of the split; instruction data is one that gives rows, which plain_text joins. Add one here and, to
calibrate on it, a YAML in conf/calibration/.
"""

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from svdexp.data.instructions import Row, parse_rows, plain_text
from svdexp.errors import UserError


class Split(StrEnum):
    """What a text is read for."""

    calibration = "calibration"
    evaluation = "evaluation"


def read_text(name: str, split: Split, files: Sequence[str] = ()) -> str:
    """The text called `name`; `files` are the paths behind the name `files`, instruction data by their ending.

    Raises:
        UserError: unknown name, missing, bad or empty file, or an unreachable hub.
    """
    knob = _knob(split)
    text = _join([_file_text(f, f"{knob}.files") for f in files]) if name == "files" else _source(name, knob)(split)
    if not text.strip():
        raise UserError(f"{knob}: the text {name} is empty" + (f" ({', '.join(files)})" if files else ""))
    return text


def read_rows(name: str, split: Split, files: Sequence[str] = ()) -> list[Row]:
    """The rows of the instruction data called `name`; of all `files` one after the other behind the name `files`.

    Raises:
        UserError: as in `read_text`, or the text is no instruction data.
    """
    require_rows(name, split, files)
    knob = _knob(split)
    if name == "files":
        rows = [row for file in files for row in _file_rows(file, f"{knob}.files")]
    else:
        rows = INSTRUCTIONS[name](split)
    if not rows:
        raise UserError(f"{knob}: the text {name} is empty")
    return rows


def check_text(name: str, split: Split, files: Sequence[str] = ()) -> None:
    """Raise UserError now for a mistake that reading would find later: cheap, and never downloads."""
    knob = _knob(split)
    if name == "files":
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{knob}.files: {file} is not a file")
    else:
        _source(name, knob)
        if name in LOCAL:
            _local_path(name, split)


def require_rows(name: str, split: Split, files: Sequence[str] = ()) -> None:
    """Raise UserError unless the text called `name` is instruction data."""
    others = [file for file in files if Path(file).suffix not in ROW_FILES] if name == "files" else [name]
    for other in others:
        if other not in INSTRUCTIONS:
            raise UserError(
                f"{_knob(split)}.chat=true: {other} is no instruction data; "
                f"choose {', '.join(INSTRUCTIONS)} or files that end in {' or '.join(ROW_FILES)}"
            )


def _knob(split: Split) -> str:
    return "calibration" if split is Split.calibration else "eval"


def _source(name: str, knob: str) -> Callable[[Split], str]:
    if name not in TEXTS:
        where = "calibration.text" if knob == "calibration" else "eval.texts"
        raise UserError(f"{where}: no text is called {name!r}; choose from {', '.join([*TEXTS, 'files'])}")
    return TEXTS[name]


def _read_file(path: Path, knob: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{knob}: {path} cannot be read: {error}") from error


def _file_text(file: str, knob: str) -> str:
    return plain_text(_file_rows(file, knob)) if Path(file).suffix in ROW_FILES else _read_file(Path(file), knob)


def _file_rows(file: str, knob: str) -> list[Row]:
    path = Path(file)
    return parse_rows(_read_file(path, knob), f"{knob}: {path}", per_line=path.suffix == ".jsonl")


def _join(parts: Sequence[str]) -> str:
    return "\n\n".join(parts)


def pydoc(split: Split) -> str:
    """CPython's own language reference: the first 80 % of the characters calibrate, the rest evaluates."""
    from pydoc_data.topics import topics

    text = _join([topics[key] for key in sorted(topics)])
    cut = len(text) * 4 // 5
    return text[:cut] if split is Split.calibration else text[cut:]


def _hub(path: str, name: str | None, split: str, **options: object) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, name, split=split, **options)
    except Exception as error:  # datasets raises a dozen types for an unreachable or unknown data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the data set {path} cannot be loaded from the hub: {reason}") from error


def wikitext2(split: Split) -> str:
    """WikiText-2 raw, lines joined by blank lines as the papers do: train calibrates, test evaluates."""
    part = "train" if split is Split.calibration else "test"
    return _join(_hub("Salesforce/wikitext", "wikitext-2-raw-v1", part)["text"])


def ptb(split: Split) -> str:
    """Penn Treebank: train calibrates, test evaluates."""
    part = "train" if split is Split.calibration else "test"
    rows = _hub("ptb-text-only/ptb_text_only", None, part, revision="refs/convert/parquet")["sentence"]
    return " ".join(rows) if split is Split.calibration else _join(rows)


def c4(split: Split) -> str:
    """The first shard of C4 English: train calibrates, validation evaluates."""
    file, part = {
        Split.calibration: ("en/c4-train.00000-of-01024.json.gz", "train"),
        Split.evaluation: ("en/c4-validation.00000-of-00008.json.gz", "validation"),
    }[split]
    return _join(_hub("allenai/c4", None, part, data_files={part: file})["text"])


def alpaca(split: Split) -> list[Row]:
    """Cleaned Alpaca instructions with answers: the first 90 % of the rows calibrate, the rest evaluates."""
    part = "train[:90%]" if split is Split.calibration else "train[90%:]"
    return [Row(r["instruction"], r["input"], r["output"]) for r in _hub("yahma/alpaca-cleaned", None, part)]


# Files with these endings hold rows: one object a line in .jsonl, one array of objects in .json.
ROW_FILES = (".jsonl", ".json")
INSTRUCTIONS: dict[str, Callable[[Split], list[Row]]] = {"alpaca": alpaca}


# Texts under $SVDEXP_DATA: the stem of {stem}.valid.txt (calibration) and {stem}.test.txt (evaluation).
LOCAL = {"wikitext2_local": "wikitext2", "ptb_local": "ptb"}


def _local_path(name: str, split: Split) -> Path:
    folder = os.environ.get("SVDEXP_DATA")
    file = f"{LOCAL[name]}.{'valid' if split is Split.calibration else 'test'}.txt"
    if not folder:
        raise UserError(f"the text {name} is {file} under $SVDEXP_DATA, which is not set")
    path = Path(folder) / file
    if not path.is_file():
        raise UserError(f"the text {name} needs {path}, which is not a file; set $SVDEXP_DATA to its folder")
    return path


def _local(name: str) -> Callable[[Split], str]:
    return lambda split: _read_file(_local_path(name, split), "$SVDEXP_DATA")


def _plain(name: str) -> Callable[[Split], str]:
    return lambda split: plain_text(INSTRUCTIONS[name](split))


TEXTS: dict[str, Callable[[Split], str]] = {
    "pydoc": pydoc,
    "wikitext2": wikitext2,
    "ptb": ptb,
    "c4": c4,
    **{name: _plain(name) for name in INSTRUCTIONS},
    **{name: _local(name) for name in LOCAL},
}
