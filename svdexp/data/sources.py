"""Where texts come from.

A text is a list of rows for each of its splits; instruction data is one whose rows can be read as conversations too.
Add one to TEXTS and, to calibrate on it, a YAML in conf/calibration/.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdexp.data.instructions import Row, plain_rows
from svdexp.runtime.errors import UserError


@dataclass(frozen=True)
class Text:
    """A text by name.

    Attributes:
        dataset: what it is where it comes from.
        read: split → rows.
        calibrates: the split that does.
        evaluates: the splits that may, the first by default; never the one that calibrates.
        calibration_separator: what joins rows that calibrate.
        size: rows and characters of the first split that evaluates, about: for estimates without the hub.
    """

    dataset: str
    read: Callable[[str], list[str]]
    calibrates: str
    evaluates: tuple[str, ...]
    calibration_separator: str = "\n\n"
    size: tuple[int, int] | None = None


def read_file(path: Path, knob: str) -> str:
    """The file's text.

    Raises:
        UserError: it cannot be read, or is not UTF-8; blames `knob`.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{knob}: {path} cannot be read: {error}") from error


def pydoc(split: str) -> list[str]:
    """CPython's own language reference in one row: the first 80 % of the characters calibrate, the rest evaluates."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    cut = len(text) * 4 // 5
    return [text[:cut] if split == "first 80 %" else text[cut:]]


def pydoc_path() -> Path:
    """The module that holds it, which differs between versions of Python."""
    from pydoc_data import topics

    return Path(topics.__file__)


def _hub(path: str, name: str | None, split: str, **options: object) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, name, split=split, **options)
    except Exception as error:  # datasets raises a dozen types for an unreachable or unknown data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the data set {path} cannot be loaded from the hub: {reason}") from error


def wikitext2(split: str) -> list[str]:
    """WikiText-2 raw, line by line, empty lines too."""
    return list(_hub("Salesforce/wikitext", "wikitext-2-raw-v1", split)["text"])


def ptb(split: str) -> list[str]:
    """Penn Treebank, sentence by sentence."""
    return list(_hub("ptb-text-only/ptb_text_only", None, split, revision="refs/convert/parquet")["sentence"])


def c4(split: str) -> list[str]:
    """The first shard of C4 English, page by page."""
    shards = 1024 if split == "train" else 8
    file = f"en/c4-{split}.00000-of-{shards:05}.json.gz"
    return list(_hub("allenai/c4", None, split, data_files={split: file})["text"])


def alpaca(split: str) -> list[Row]:
    """Cleaned Alpaca instructions with answers."""
    return [Row(r["instruction"], r["input"], r["output"]) for r in _hub("yahma/alpaca-cleaned", None, split)]


INSTRUCTIONS: dict[str, Callable[[str], list[Row]]] = {"alpaca": alpaca}


# Texts under $SVDEXP_DATA: the stem of {stem}.valid.txt, which calibrates, and {stem}.test.txt, which evaluates.
LOCAL = {"wikitext2_local": "wikitext2", "ptb_local": "ptb"}


def local_path(name: str, split: str) -> Path:
    """The file of a local text.

    Raises:
        UserError: $SVDEXP_DATA is not set, or the file is not there.
    """
    folder = os.environ.get("SVDEXP_DATA")
    file = f"{LOCAL[name]}.{split}.txt"
    if not folder:
        raise UserError(f"the text {name} is {file} under $SVDEXP_DATA, which is not set")
    path = Path(folder) / file
    if not path.is_file():
        raise UserError(f"the text {name} needs {path}, which is not a file; set $SVDEXP_DATA to its folder")
    return path


def _local(name: str) -> Callable[[str], list[str]]:
    return lambda split: [read_file(local_path(name, split), "$SVDEXP_DATA")]


def _plain(name: str) -> Callable[[str], list[str]]:
    return lambda split: plain_rows(INSTRUCTIONS[name](split))


# PTB calibrates with spaces between sentences, as GPTQ and what descends from it do.
TEXTS: dict[str, Text] = {
    "pydoc": Text("CPython's language reference", pydoc, "first 80 %", ("last 20 %",)),
    "wikitext2": Text(
        "Salesforce/wikitext wikitext-2-raw-v1", wikitext2, "train", ("test", "validation"), size=(4358, 1_300_000)
    ),
    "ptb": Text("ptb-text-only/ptb_text_only", ptb, "train", ("test", "validation"), " ", size=(3761, 450_000)),
    "c4": Text("allenai/c4 en, first shard", c4, "train", ("validation",), size=(45_576, 100_000_000)),
    "alpaca": Text("yahma/alpaca-cleaned", _plain("alpaca"), "train[:90%]", ("train[90%:]",), size=(5176, 4_000_000)),
    **{name: Text(f"{stem}.*.txt", _local(name), "valid", ("test",)) for name, stem in LOCAL.items()},
}
