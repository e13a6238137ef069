"""The tables that papers print: what is bold, what stands beside, and rivals that were measured as they are."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from svdexp.record.keys import Better
from svdexp.report.__main__ import main
from svdexp.report.collect import standalone, survey
from svdexp.report.frame import tidy
from svdexp.report.grids import Value, accuracies, best, perplexities
from svdexp.report.latex import latex
from svdexp.report.published import published
from svdexp.report.tables import Table, published_alike
from tests.report.fake_sweeps import leave_cell
from tests.report.test_report import leave_published

ERRORS = {f"ppl_stderr/{text}": 0.2 for text in ("wiki", "ptb")} | {
    f"ppl_stderr_dense/{text}": 0.1 for text in ("wiki", "ptb")
}
TASKS = ("piqa", "arc_easy", "hellaswag")


def tables(folder: Path) -> list[Table]:
    records = survey([folder])[0]
    frame = tidy(records, standalone([folder], records))
    return [*perplexities(frame, published_alike(records, published())), *accuracies(frame)]


def bold(table: Table) -> set[tuple[str, str]]:
    return {(table.rows[row][0], table.rows[0][column]) for row, column in table.strong}


def test_what_the_errors_do_not_tell_apart_is_bold_together() -> None:
    values = {1: Value(7.0, 0.1), 2: Value(7.15, 0.1), 3: Value(7.25, 0.1), 4: Value(float("inf"), 0.0)}
    assert best(values, Better.lower) == {1, 2}
    assert best(values, Better.higher) == {2, 3}
    assert best({1: Value(7.0, 0.0), 2: Value(7.001, 0.0)}, Better.lower) == {1}
    assert best({1: Value(48.0, 5.0), 2: Value(300.0, 400.0)}, Better.lower) == {1}
    assert best({1: Value(float("nan"), 0.0)}, Better.lower) == set()


def test_method_by_ratio(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0, **ERRORS)
    leave_cell(tmp_path, "svd_llm", 0.8, 6.0, **ERRORS)
    leave_cell(tmp_path, "svd", 0.8, 9.0, **ERRORS)
    leave_cell(tmp_path, "svd", 0.6, 9.0, **ERRORS)
    ptb, wiki, *_ = tables(tmp_path)
    assert ptb.title == "Perplexity on ptb, 100,000 tokens"
    assert wiki.rows == [
        ["method", "0.8", "0.6"],
        ["dense", "6.00 ± 0.10", "6.00 ± 0.10"],
        ["kron", "7.20 ± 0.20", ""],
        ["svd", "8.16 ± 0.20", "14.64 ± 0.20"],
        ["svd_llm", "7.44 ± 0.20", ""],
    ]
    assert bold(wiki) == {("kron", "0.8"), ("svd_llm", "0.8"), ("svd", "0.6")}
    assert bold(ptb) == {("kron", "0.8"), ("svd", "0.6")}


def test_runs_of_one_cell_are_averaged_and_their_spread_counts(tmp_path: Path) -> None:
    for seed, quality in enumerate((5.0, 6.0)):
        leave_cell(tmp_path / str(seed), "kron", 0.8, quality, **ERRORS)
    _, wiki, *_ = tables(tmp_path)
    assert wiki.rows[2] == ["kron", "7.32 ± 0.20 (2 runs)"]
    assert str(Value.of([1.0, 2.0, 3.0], [0.1] * 3)) == "2.0 ± 1.0 (3 runs)"


def test_accuracies_by_task_and_their_mean(tmp_path: Path) -> None:
    errors = {f"acc_stderr/{task}": 0.03 for task in TASKS} | {f"acc_stderr_dense/{task}": 0.03 for task in TASKS}
    leave_cell(tmp_path, "kron", 0.8, 5.0, **errors)
    leave_cell(tmp_path, "svd", 0.8, 20.0, **errors)
    leave_cell(tmp_path, "svd", 0.6, 20.0, **errors)
    *_, mean, by_task = tables(tmp_path)
    assert mean.title == "Accuracy, mean of 3 tasks"
    assert mean.rows[1] == ["dense", "0.683 ± 0.017", "0.683 ± 0.017"]
    assert by_task.rows[0] == ["ratio", "method", "arc_easy (200)", "hellaswag (200)", "piqa (200)", "average"]
    assert [row[:2] for row in by_task.rows[1:]] == [["1", "dense"], ["0.8", "kron"], ["0.8", "svd"], ["0.6", "svd"]]
    assert by_task.rows[2][2:] == ["0.542 ± 0.030", "0.542 ± 0.030", "0.792 ± 0.030", "0.625 ± 0.017"]
    assert {row for row, _ in by_task.strong} == {2, 4}


def test_a_group_of_tasks_stands_beside_them_and_not_in_their_mean(tmp_path: Path) -> None:
    pooled = {"acc/mine": 0.9, "acc_stderr/mine": 0.01, "acc_rows/mine": 400}
    asked = {"piqa": {"groups": ["mine"]}, "arc_easy": {"groups": ["mine"]}, "hellaswag": {}}
    leave_cell(tmp_path, "kron", 0.8, 5.0, tasks=asked, **pooled)
    *_, mean, by_task = tables(tmp_path)
    assert mean.title == "Accuracy, mean of 3 tasks"
    assert by_task.rows[0][2:] == [*(f"{task} (200)" for task in sorted(TASKS)), "mine, pooled", "average"]
    assert by_task.rows[2][2:] == ["0.5417", "0.5417", "0.7917", "0.900 ± 0.010", "0.625"]


def test_other_numbers_of_rows_share_no_table(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0)
    leave_cell(tmp_path, "svd", 0.8, 5.0, **{"acc_rows/piqa": 100})
    titles = [table.title for table in tables(tmp_path) if table.title.startswith("Accuracy")]
    assert len(titles) == 4
    assert sum("piqa 100" in title for title in titles) == 2


@pytest.mark.parametrize(("other", "there"), [({}, True), ({"storage": "pivot", "storage_options": {}}, False)])
def test_published_figures_stand_below_the_line_only_where_measured_alike(
    tmp_path: Path, other: dict[str, Any], there: bool
) -> None:
    leave_published(tmp_path / "a", **{"storage": "factors", "storage_options": {}} | other)
    (table,) = tables(tmp_path)
    said = [["svd_llm, arXiv 2604.02119, table 1", "7.94"], ["svd_llm, arXiv 2604.01609, table 1", "7.94"]]
    assert table.rows[2:] == (said if there else [])
    assert bold(table) == {("svd_llm", "0.8")}


RIVAL = {
    **{"model": "llama2-7b", "model_path": "/models/llama2-7b-q4_k_m.gguf", "params": 7_000_000_000},
    **{"bytes": 28_000_000_000, "ppl/wiki": 6.4, "ppl_tokens/wiki": 100_000, "ppl_stderr/wiki": 0.05},
}


def leave_rival(folder: Path, **others: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RIVAL | others))


def test_a_model_measured_as_it_is_enters_tables_and_pictures(tmp_path: Path) -> None:
    leave_cell(tmp_path / "runs", "kron", 0.8, 5.0)
    leave_rival(tmp_path / "runs" / "gguf", file_bytes=4_000_000_000)
    _, wiki, *_ = tables(tmp_path)
    assert wiki.rows[0] == ["method", "0.8", "at its own size"]
    assert wiki.rows[-1] == ["llama2-7b-q4_k_m (as it is)", "", "6.400 ± 0.050 at 4 GB"]
    assert bold(wiki) == {("kron", "0.8")}
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    page = (tmp_path / "to" / "report.html").read_text()
    assert 'data-series="llama2-7b-q4_k_m (as it is)"' in page
    assert '"x":4.0' in page
    assert main([str(tmp_path / "runs")]) == 0


def test_where_a_rival_belongs(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0, model_fingerprint="f" * 8)
    leave_rival(tmp_path / "a")
    leave_rival(tmp_path / "b", model="other")
    leave_rival(tmp_path / "c", model="another", model_fingerprint="f" * 8)
    leave_rival(tmp_path / "d", params="many")
    records, gone = survey([tmp_path])
    assert [record["label"] for record in standalone([tmp_path], records)] == ["llama2-7b", "llama2-7b", "other"]
    assert [missing.folder.name for missing in gone] == ["d"]
    frame = tidy(records, standalone([tmp_path], records))
    assert list(frame["model_bytes"])[1:] == [14e9] * 3  # as 16 bits, where the files' bytes are not recorded


UGLY = r"""a_b & 50% of $x$ {y} \z ~ ^ # " ' ` <é 模> | -- 1.5 ± 0.1 × · Δ ‖ …"""


def test_latex_of_any_words_compiles(tmp_path: Path) -> None:
    rows = [["method", UGLY, "0.8"], [UGLY, UGLY, "1.0 ± 0.1"], ["x", "", "2"]]
    text = latex(Table(UGLY, rows, frozenset({(1, 2)}), UGLY))
    assert r"\textbf{1.0~$\pm$~0.1}" in text.replace(" ", "~")
    assert r"\begin{tabular}{llr}" in text
    assert r"\toprule" in text
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex")
    packages = r"\usepackage{booktabs}\usepackage{graphicx}"
    (tmp_path / "a.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
