"""Figures as people read them."""

import math
from typing import Any

import pytest

from svdexp.tracking.console import FIGURES, LABELS, RUN, beside_dense, change, label, number, show, verdicts


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ppl/pydoc", 11.0014, "11.00"),
        ("ppl/pydoc", math.nan, "nan"),
        ("ppl/pydoc", math.inf, "inf"),
        ("reload_max_logit_difference", -math.inf, "-inf"),
        ("params", 1234, "1,234"),
        ("bytes", 2_500_000, "2.5 MB"),
        ("bytes", 57_340, "57.3 kB"),
    ],
)
def test_number(key: str, value: float, words: str) -> None:
    assert number(key, value) == words


def test_change() -> None:
    assert change("ppl/pydoc", 10.0, 11.0) == "1.100 ×"
    assert change("ppl/pydoc", 10.0, math.nan) == "nan ×"
    assert change("ppl/pydoc", 10.0, 911_724.0) == "91,172 ×"
    assert change("acc/boolq", 0.5, 0.25) == "-0.250"
    assert change("tokens_per_second/decode", 0.0, 3.0) == ""


def test_a_run_whose_figures_are_nan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    results: dict[str, Any] = {"model": "tiny", "method": "svd", "ratio": 0.5, "dtype": "float32", "device": "cpu"}
    results |= {"ppl/files": math.nan, "ppl_dense/files": 20.0, "generation": [], "run_dir": "here"}
    show(results)
    row = next(line for line in capsys.readouterr().out.splitlines() if "ppl/files" in line)
    assert row.replace("│", " ").split()[-5:] == ["(ppl/files)", "20.00", "nan", "nan", "×"]


def test_people_read_labels_and_find_keys() -> None:
    assert label("ppl/pydoc").plain == "perplexity, pydoc  (ppl/pydoc)"
    assert label("tokens_per_second/decode").plain == "tokens per second, decode  (tokens_per_second/decode)"
    assert label("peak_rss_bytes").plain == "peak memory  (peak_rss_bytes)"
    assert {*FIGURES, *RUN} <= LABELS.keys()


def test_the_dense_model_by_our_routes_stands_beside() -> None:
    results = {"tokens_per_second/prefill": 300.0, "tokens_per_second/decode": 95.0}
    results |= {"tokens_per_second_routed/prefill": 200.0, "tokens_per_second_routed/decode": 100.0}
    assert verdicts(results) == ["Beside dense with svdexp's own products: prefill 1.50 ×, decode 0.95 ×."]


@pytest.mark.parametrize(
    ("speed", "spread", "sentences"),
    [
        (95.0, 0.02, ["The compressed model is slower in decode: 0.95 × dense."]),
        (95.0, 0.1, ["As fast as dense in decode: 0.95 ×, where repeats of one measurement differ by 10%."]),
        (105.0, 0.1, ["As fast as dense in decode: 1.05 ×, where repeats of one measurement differ by 10%."]),
        (105.0, 0.0, []),
    ],
)
def test_speeds_inside_the_spread_are_even(speed: float, spread: float, sentences: list[str]) -> None:
    results = {"tokens_per_second/decode": speed, "tokens_per_second/decode_dense": 100.0}
    for here, there in ((spread, 0.0), (0.0, spread)):
        spreads = {"speed_spread/decode": here, "speed_spread_dense/decode": there}
        assert verdicts({**results, **spreads}) == sentences
        row = beside_dense({**results, **spreads}, *(f"tokens_per_second/decode{end}" for end in ("", "_dense")))
        assert row[-1] == f"{speed / 100:.3f} ×" + (", even" if sentences[:1] and "As fast" in sentences[0] else "")


def test_a_run_says_what_is_next_and_its_log_has_it_all(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    results: dict[str, Any] = {"model": "tiny", "method": "svd", "ratio": 0.5, "dtype": "float32", "device": "cpu"}
    results |= {"ppl/files": 21.0, "ppl_dense/files": 20.0, "run_dir": "here", "generation": []}
    with caplog.at_level("INFO", "svdexp"):
        show(results, saved=True)
    printed = capsys.readouterr().out
    assert "python -m svdexp.export path=here to=FOLDER" in printed
    assert 'svdexp.load("here")' in printed
    assert "python -m svdexp.report here --to report" in printed
    (record,) = caplog.records
    assert record.file_only  # type: ignore[attr-defined]
    assert "perplexity, files  (ppl/files)" in record.message
    show(results)
    printed = capsys.readouterr().out
    assert "report here" in printed
    assert "export" not in printed
    show(results, saved=True, last=False)
    assert "next:" not in capsys.readouterr().out
