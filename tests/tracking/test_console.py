"""Figures as people read them."""

import math
from typing import Any

import pytest

from svdexp.tracking.console import change, number, show


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ppl/pydoc", 11.0014, "11.00"),
        ("ppl/pydoc", math.nan, "nan"),
        ("ppl/pydoc", math.inf, "inf"),
        ("reload_max_logit_difference", -math.inf, "-inf"),
        ("params", 1234, "1,234"),
        ("bytes", 2_500_000, "2.5 MB"),
    ],
)
def test_number(key: str, value: float, words: str) -> None:
    assert number(key, value) == words


def test_change() -> None:
    assert change("ppl/pydoc", 10.0, 11.0) == "1.100 ×"
    assert change("ppl/pydoc", 10.0, math.nan) == "nan ×"
    assert change("acc/boolq", 0.5, 0.25) == "-0.250"
    assert change("tokens_per_second/decode", 0.0, 3.0) == ""


def test_a_run_whose_figures_are_nan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    results: dict[str, Any] = {"model": "tiny", "method": "svd", "ratio": 0.5, "dtype": "float32", "device": "cpu"}
    results |= {"ppl/files": math.nan, "ppl_dense/files": 20.0, "generation": [], "run_dir": "here"}
    show(results)
    row = next(line for line in capsys.readouterr().out.splitlines() if "ppl/files" in line)
    assert row.replace("│", " ").split() == ["ppl/files", "20.00", "nan", "nan", "×"]
