"""The report reads what runs leave."""

from pathlib import Path
from typing import Any

import pytest

from svdexp.errors import UserError
from svdexp.published import published
from svdexp.report.collect import read
from svdexp.report.document import markdown_table, numbered
from svdexp.report.tables import beside_published, every_run
from tests.report.fake_sweeps import leave


def table(records: list[dict[str, Any]]) -> str:
    return markdown_table(every_run(records))


def comparison(records: list[dict[str, Any]]) -> str:
    rows, notes = beside_published(records, published())
    return "\n".join([markdown_table(rows), "", numbered(notes)]) if rows else ""


def test_rows_are_sorted_and_missing_figures_blank(tmp_path: Path) -> None:
    leave(tmp_path / "a", ratio=0.4, **{"ppl/x": 30.123, "seconds/calibration": 1.6, "seconds/evaluate": 90})
    leave(tmp_path / "b", ratio=0.8, **{"ppl/y": 12.0})
    lines = table(read([tmp_path])).splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("| ppl/x | ppl/y | seconds to compress | peak RSS, GB |")
    assert lines[2].endswith("| 0.8 | 0.5 |  | 12 | 0 | 2.0 |")
    assert lines[3].endswith("| 0.4 | 0.5 | 30.12 |  | 2 | 2.0 |")


def test_nothing_to_report_and_damaged_records_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results\.json of a compression below"):
        read([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read([tmp_path])


PROTOCOL = {
    "preset": "svd_llm",
    "split": "test",
    "cut": "contiguous",
    "windows": 166,
    "seq_len": 2048,
    "bos": "start",
    "special_tokens": "parsed",
    "tokens": 339802,
}


def test_published_figures_stand_beside_the_same_cell(tmp_path: Path) -> None:
    cell = {"model": "llama-7b", "method": "svd_llm", "allocation": "Uniform"}
    figures = {"ppl/wikitext2": 7.891, "ppl_stderr/wikitext2": 0.0512, "protocol": {"wikitext2": PROTOCOL}}
    leave(tmp_path / "a", ratio=0.8, **cell, **figures)
    lines = comparison(read([tmp_path])).splitlines()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines[2:4]]
    measured = [
        *("llama-7b", "svd_llm", "Uniform", "factors", "0.8", "wikitext2"),
        "svd_llm: test, contiguous, 166 × 2048, BOS start, special tokens parsed, 339802 tokens",
        *("7.891 ± 0.0512", "7.94"),
    ]
    assert [row[:9] for row in rows] == [measured, measured]
    assert [row[9] for row in rows] == ["arXiv 2604.02119, table 1", "arXiv 2604.01609, table 1"]
    assert {row[11] for row in rows} == {"1, 2, 3"}
    assert [line[:2] for line in lines[5:]] == ["1.", "2.", "3."]
    assert "7.86 to 7.94" in "".join(lines[5:])


@pytest.mark.parametrize(
    "other",
    [
        {"model": "llama-13b"},
        {"method": "kron"},
        {"storage": "pivot"},
        {"ratio": 0.7},
        {"targets": {"include": ["*.k_proj"], "exclude": [], "lm_head": False, "ranks": {}}},
        {"text": "wikitext2_local"},
    ],
)
def test_another_cell_has_no_published_figure(tmp_path: Path, other: dict[str, Any]) -> None:
    text = other.pop("text", "wikitext2")
    leave(tmp_path / "a", **{"model": "llama-7b", "method": "svd_llm", "ratio": 0.8, f"ppl/{text}": 7.9} | other)
    assert comparison(read([tmp_path])) == ""


def test_a_run_of_an_older_version_says_no_protocol(tmp_path: Path) -> None:
    leave(tmp_path / "a", model="llama-7b", method="svd", ratio=0.6, **{"ppl/ptb": 6e4})
    assert "| ptb |  | 6e+04 ±  | 59977 |" in comparison(read([tmp_path]))
