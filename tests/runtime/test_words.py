"""What of the log people read on the console."""

import logging
import sys

import pytest
from tqdm import tqdm

from svdexp.runtime.words import FILE_ONLY, Console, Ours, Words


def record(name: str, level: int, **extra: object) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, level, "file", 1, "words", (), None, extra=extra)


@pytest.mark.parametrize(
    ("name", "level", "seen"),
    [
        ("svdexp", logging.INFO, True),
        ("svdexp.cells.cell", logging.WARNING, True),
        ("bitsandbytes.backends", logging.WARNING, False),
        ("py.warnings", logging.WARNING, False),
        ("svdexpert", logging.WARNING, False),
        ("bitsandbytes.backends", logging.ERROR, True),
    ],
)
def test_whose_words_are_seen(name: str, level: int, seen: bool) -> None:
    assert Ours().filter(record(name, level)) is seen
    assert not Ours().filter(record("svdexp", logging.INFO, **FILE_ONLY))


def test_a_warning_says_that_it_is_one() -> None:
    assert Words().format(record("svdexp", logging.INFO)) == "words"
    assert Words().format(record("svdexp", logging.WARNING)) == "warning: words"


def test_a_line_stands_between_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, desc="bar", file=sys.stderr):
        capsys.readouterr()
        Console(sys.stdout).emit(record("svdexp", logging.INFO))
        printed = capsys.readouterr()
    assert printed.out == "words\n"
    gone, back = printed.err.split("bar:")
    assert not gone.strip()
    assert "0/3" in back
