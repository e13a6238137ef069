"""Texts by name, each with a calibration and an evaluation split that never overlap.

A text is a function of the split. Add one here and, to calibrate on it, a YAML in conf/calibration/.
"""

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from svdexp.errors import UserError


class Split(StrEnum):
    """What a text is read for."""

    calibration = "calibration"
    evaluation = "evaluation"


def read_text(name: str, split: Split, files: Sequence[str] = ()) -> str:
    """The text called `name`; `files` are the paths behind the name `files`.

    Raises:
        UserError: unknown name, missing or empty file, or an unreachable hub.
    """
    knob = "calibration" if split is Split.calibration else "eval"
    text = (
        _join([_read_file(Path(f), f"{knob}.files") for f in files]) if name == "files" else _source(name, knob)(split)
    )
    if not text.strip():
        raise UserError(f"{knob}: the text {name} is empty" + (f" ({', '.join(files)})" if files else ""))
    return text


def check_text(name: str, split: Split, files: Sequence[str] = ()) -> None:
    """Raise UserError now for a mistake that reading would find later: cheap, and never downloads."""
    knob = "calibration" if split is Split.calibration else "eval"
    if name == "files":
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{knob}.files: {file} is not a file")
    else:
        _source(name, knob)
        if name in LOCAL:
            _local_path(name, split)


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


def alpaca(split: Split) -> str:
    """Cleaned Alpaca instructions with answers: the first 90 % of the rows calibrate, the rest evaluates."""
    part = "train[:90%]" if split is Split.calibration else "train[90%:]"
    rows = _hub("yahma/alpaca-cleaned", None, part)
    return _join(["\n".join(filter(None, (r["instruction"], r["input"], r["output"]))) for r in rows])


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


TEXTS: dict[str, Callable[[Split], str]] = {
    "pydoc": pydoc,
    "wikitext2": wikitext2,
    "ptb": ptb,
    "c4": c4,
    "alpaca": alpaca,
    **{name: _local(name) for name in LOCAL},
}
