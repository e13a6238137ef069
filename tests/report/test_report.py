"""The report reads what runs leave."""

from pathlib import Path
from typing import Any

import pytest

from svdexp.report.collect import survey
from svdexp.report.published import published
from svdexp.report.tables import beside_published, every_run
from svdexp.runtime.errors import UserError
from svdexp.runtime.markdown import numbered
from svdexp.runtime.markdown import table as markdown_table
from tests.report.fake_sweeps import leave


def table(records: list[dict[str, Any]]) -> str:
    return markdown_table(every_run(records))


def read(folders: list[Path]) -> list[dict[str, Any]]:
    return survey(folders)[0]


def comparison(records: list[dict[str, Any]], alike: bool = True) -> str:
    rows, notes = beside_published(records, published(), alike=alike)
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
    with pytest.raises(UserError, match=r"no results\.json of svdexp's below"):
        read([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"1 cells have none, the first .*results\.json cannot be read"):
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


CALIBRATION = {"text": "wikitext2", "samples": 256, "seq_len": 2048}
PRESET = {
    **{"name": "svd_llm", "bos": "tokenizer_start", "stride": None, "windows": None, "separator": "\n\n"},
    **{"rows_by_text": {"c4": 2000}, "windows_by_text": {}},
}


def leave_published(folder: Path, **other: Any) -> None:
    """A run as a paper measured one."""
    cell = {"model": "llama-7b", "method": "svd_llm", "weighting": "InputMoment", "allocation": "Uniform(rank_align=1)"}
    figures = {"ppl/wikitext2": 7.891, "ppl_stderr/wikitext2": 0.0512, "protocol": {"wikitext2": PROTOCOL}}
    leave(folder, **{"ratio": 0.8, **cell, **figures, "calibration": CALIBRATION, "eval": PRESET} | other)


@pytest.mark.parametrize(
    "storage", [{"storage": "factors", "storage_options": {}}, {"storage": "FactorStorage"}], ids=["now", "older"]
)
def test_published_figures_stand_beside_the_same_cell(tmp_path: Path, storage: dict[str, Any]) -> None:
    leave_published(tmp_path / "a", **storage)
    lines = comparison(read([tmp_path])).splitlines()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines[2:4]]
    measured = [
        *("llama-7b", "svd_llm", "uniform", "factors", "0.8", "wikitext2"),
        "svd_llm: test, contiguous, 166 × 2048, BOS start, special tokens parsed, 339802 tokens",
        *("7.891 ± 0.0512", "7.94"),
    ]
    assert [row[:9] for row in rows] == [measured, measured]
    assert [row[9] for row in rows] == ["arXiv 2604.02119, table 1", "arXiv 2604.01609, table 1"]
    assert {row[11] for row in rows} == {"1, 2, 3"}
    assert [line[:2] for line in lines[5:]] == ["1.", "2.", "3."]
    assert "7.86 to 7.94" in "".join(lines[5:])
    assert comparison(read([tmp_path]), alike=False) == ""


@pytest.mark.parametrize(
    "other",
    [
        {"model": "llama-13b"},
        {"method": "kron"},
        {"storage": "pivot"},
        {"storage": "PivotStorage"},
        {"ratio": 0.7},
        {"targets": {"include": ["*.k_proj"], "exclude": [], "lm_head": False, "ranks": {}}},
        {"text": "wikitext2_local"},
    ],
)
def test_another_cell_has_no_published_figure(tmp_path: Path, other: dict[str, Any]) -> None:
    text = other.pop("text", "wikitext2")
    leave(tmp_path / "a", **{"model": "llama-7b", "method": "svd_llm", "ratio": 0.8, f"ppl/{text}": 7.9} | other)
    for alike in (True, False):
        assert comparison(read([tmp_path]), alike) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"calibration": CALIBRATION | {"text": "c4"}}, "calibration.text c4, there wikitext2"),
        ({"calibration": CALIBRATION | {"samples": 32}}, "calibration.samples 32, there 256"),
        ({"protocol": {"wikitext2": PROTOCOL | {"split": "validation"}}}, "split validation, there test"),
        ({"protocol": {"wikitext2": PROTOCOL | {"cut": "pieces"}}}, "cut pieces, there contiguous"),
        ({"protocol": {"wikitext2": PROTOCOL | {"seq_len": 64}}}, "seq_len 64, there 2048; stride 64, there 2048"),
        ({"eval": PRESET | {"windows": 12}}, "windows 12, there all"),
        ({"eval": PRESET | {"windows_by_text": {"wikitext2": 3}}}, "windows 3, there all"),
        ({"eval": PRESET | {"stride": 512}}, "stride 512, there 2048"),
        ({"protocol": {"wikitext2": PROTOCOL | {"bos": "every"}}}, "bos every, there start"),
        (
            {"protocol": {"wikitext2": PROTOCOL | {"bos": "none"}}, "eval": PRESET | {"bos": "none"}},
            "bos none, there start",
        ),
        ({"protocol": {"wikitext2": PROTOCOL | {"special_tokens": "text"}}}, "special_tokens text, there parsed"),
        ({"eval": PRESET | {"separator": " "}}, "separator ' ', there '\\n\\n'"),
        ({"eval": PRESET | {"rows_by_text": {"wikitext2": 9}}}, "rows 9, there all"),
        ({"allocation": "GlobalLoss"}, "allocation global_loss, there uniform"),
        ({"allocation": "Uniform(rank_align=8)"}, "allocation uniform(rank_align=8), there uniform"),
        ({"weighting": "Diagonal(alpha=0.5, scale=abs_mean)"}, "weighting diagonal, there input_moment"),
        ({"update": "RefitOutput(samples=16)"}, "update refit_output, there None"),
        ({"traversal": "blockwise"}, "traversal blockwise, there dense"),
        ({"training": {"distill": {"options": {}, "tokens": 1, "curve": []}}}, "trained by distill, there not"),
        ({"protocol": {}}, "protocol not recorded"),
    ],
)
def test_what_was_measured_otherwise_stands_apart_and_says_so(
    tmp_path: Path, other: dict[str, Any], sentence: str
) -> None:
    leave_published(tmp_path / "a", **other)
    assert comparison(read([tmp_path])) == ""
    rows, _ = beside_published(read([tmp_path]), published(), alike=False)
    assert [row[-2] for row in rows] == ["otherwise here", sentence, sentence]


def test_published_accuracies_stand_apart_because_nobody_knows_how_they_were_asked(tmp_path: Path) -> None:
    leave_published(tmp_path / "a", **{"acc/average": 0.4512, "acc_stderr/average": 0.004})
    rows, notes = beside_published(read([tmp_path]), published(), alike=False)
    (row,) = rows[1:]
    cell = ["llama-7b", "svd_llm", "uniform", "factors", "0.8", "zeroshot7"]
    assert row[:9] == [*cell, "", "0.4512 ± 0.004", "0.44"]
    assert row[11] == "how tasks were asked is not known there"
    assert any("acc and acc_norm are mixed" in note for note in notes)


def test_a_tokenizer_that_adds_no_bos_adds_none_there(tmp_path: Path) -> None:
    asked = PRESET | {"bos": "tokenizer_start"}
    leave_published(tmp_path / "a", protocol={"wikitext2": PROTOCOL | {"bos": "none"}}, eval=asked)
    assert "| 7.891 ± 0.0512 | 7.94 |" in comparison(read([tmp_path]))


def test_dobis_own_protocol_is_the_one_that_its_figures_are_held_against(tmp_path: Path) -> None:
    drawn = PROTOCOL | {"preset": "dobi", "cut": "pieces", "windows": 256}
    asked = PRESET | {"windows": 256, "rows_by_text": {}, "cut_by_text": {"wikitext2": "pieces"}}
    parts = {"method": "dobi", "weighting": None, "allocation": "learned_remap", "update": "ipca", "storage": "remap"}
    leave_published(tmp_path / "a", **parts, protocol={"wikitext2": drawn}, eval=asked)
    assert "| 7.891 ± 0.0512 | 6.08 |" in comparison(read([tmp_path]))


def test_figures_whose_protocol_nobody_knows_are_held_against_nothing(tmp_path: Path) -> None:
    leave(tmp_path / "a", model="llama-7b", method="dobi_uniform", ratio=0.6, calibration=CALIBRATION, **{"ppl/c4": 30})
    assert "| c4 |  | 30 | 24.6 |" in comparison(read([tmp_path]))
