"""Reports of records that are damaged, malformed, of unequal weights, or without numbers; and where nothing fits."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from svdexp.report import write as module
from svdexp.report.__main__ import main
from svdexp.report.collect import layers, survey
from svdexp.report.document import file_name
from svdexp.report.frame import tidy
from svdexp.report.models import labels
from svdexp.report.tables import best_per_ratio, every_run
from svdexp.runtime.errors import UserError
from tests.report.fake_sweeps import leave, leave_cell

MALFORMED: list[tuple[str, str]] = [
    ("{", "results.json cannot be read: it is not JSON"),
    ("[" * 100_000, "results.json cannot be read: it is nested too deeply"),
    ("[]", "it is no table"),
    ("{}", "model is no word"),
    ('{"model": "m", "ratio": 0.5}', "method is no word"),
    *(
        (json.dumps({"model": "m", "method": "svd", "storage": "factors", "ratio": 0.5} | change), reason)
        for change, reason in [
            ({"storage": None}, "storage is no word"),
            ({"ratio": "0.5"}, "ratio is no kept fraction"),
            ({"ratio": float("nan")}, "ratio is no kept fraction"),
            ({"ppl/x": "12"}, "ppl/x is no number"),
            ({"ppl/x": None}, "ppl/x is no number"),
            ({"seconds/storage": []}, "seconds/storage is no number"),
            ({"params_dense": 10**400}, "params_dense is no number"),
            ({"weighting": 3}, "weighting is no word"),
            ({"model_fingerprint": []}, "model_fingerprint is no word"),
            ({"storage_options": []}, "storage_options is no table"),
            ({"calibration": {"text": "x"}}, "calibration is not what a run leaves"),
            ({"targets": "all"}, "targets is not what a run leaves"),
            ({"protocol": {"x": []}}, "protocol is not what a run leaves"),
            ({"protocol": {"x": {"bos": True}}}, "protocol is not what a run leaves"),
            ({"training": {"distill": {}}}, "training is not what a run leaves"),
            ({"target_bits_dense": 0}, "target_bits_dense is no size"),
            ({"params_dense": float("inf")}, "params_dense is no number"),
            ({"model": "\ud800"}, "results.json cannot be read: it is not JSON"),
        ]
    ),
]


@pytest.mark.parametrize(("content", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_record_is_named_and_the_others_are_reported(
    tmp_path: Path, content: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "good", ratio=0.8, **{"ppl/x": 12.0})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text(content)
    records, gone = survey([tmp_path])
    assert [record["folder"] for record in records] == [str(tmp_path / "good")]
    (one,) = gone
    assert one.folder == tmp_path / "bad"
    assert reason in one.reason
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| m | svd |" in printed
    assert f"| {tmp_path}/bad | " in printed


def test_layers_that_are_malformed_are_named_and_the_run_is_reported(tmp_path: Path) -> None:
    for index, content in enumerate(['{"a": 1}', '[{"name": "a"}]', '[{"name": "a", "projection": "b"}]', "["]):
        cell = leave_cell(tmp_path / "runs", "kron", 0.5 + index / 10, 1.0)
        (cell / "layers.json").write_text(content)
        with pytest.raises(UserError, match=r"layers\.json"):
            layers(cell)
    leave_cell(tmp_path / "runs", "kron", 0.9, 1.0)
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    assert text.count("| without layers: ") == 4
    assert text.count("| llama2-7b | kron |") == 5


def test_figures_that_are_no_numbers_have_a_place(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0, **{"ppl/wiki": float("nan"), "ppl_stderr/wiki": float("nan")})
    leave_cell(tmp_path, "svd", 0.6, 5.0, **{"ppl/wiki": float("inf"), "ppl_dense/wiki": float("nan")})
    leave_cell(tmp_path, "asvd", 0.6, 5.0)
    records, _ = survey([tmp_path])
    heading, *rows = every_run(records)
    at = heading.index("ppl/wiki")
    assert {row[1]: row[at] for row in rows} == {"kron": "nan", "svd": "inf", "asvd": "10.8"}
    best = {(row[1], row[2]): row[3:6] for row in best_per_ratio(tidy(records))[1:]}
    assert best["wiki, 100,000 tokens", "0.8"] == ["kron", "not finite", "not finite"]
    assert best["wiki, 100,000 tokens", "0.6"][0] == "asvd"
    assert main([str(tmp_path), "--to", str(tmp_path / "to")]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    assert "wiki, 100,000 tokens, kron at 0.8: inf" in text
    assert "wiki, 100,000 tokens, svd at 0.6: inf" in text


def test_a_report_of_nothing_finite(tmp_path: Path) -> None:
    dense = {"ppl_dense/wiki": float("inf"), "ppl_dense/ptb": float("nan")}
    leave_cell(tmp_path / "runs", "kron", 0.8, 5.0, **{"ppl/wiki": float("nan"), "ppl/ptb": float("inf")}, **dense)
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0


def test_columns_of_mixed_types_do_not_end_the_report(tmp_path: Path) -> None:
    leave(tmp_path / "runs" / "a", ratio=0.8, note="x")
    leave(tmp_path / "runs" / "b", ratio=0.6, note=3)
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0


def test_no_two_models_share_a_picture(tmp_path: Path) -> None:
    names = ["a b", "a_b", "a/b", "a", "x" * 300, "x" * 301]
    files = [file_name("ranks", name) for name in names]
    assert len(set(files)) == len(names)
    assert files[1] == "ranks-a_b"
    assert all("/" not in name and len(name) < 150 for name in files)
    for index, name in enumerate(names[:3]):
        leave_cell(tmp_path / "runs" / str(index), "kron", 0.8, 1.0, model=name)
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    assert len(list((tmp_path / "to" / "pictures").glob("ranks-*.png"))) == 3


def test_names_that_pictures_would_read_as_formulas_or_files_cannot_hold(tmp_path: Path) -> None:
    cell = leave_cell(tmp_path / "runs", "$a_$", 0.8, 1.0, model="模" * 100)
    rows = json.loads((cell / "layers.json").read_text())
    (cell / "layers.json").write_text(json.dumps([row | {"projection": "$x_$"} for row in rows]))
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    assert len(list((tmp_path / "to" / "pictures").glob("*.png"))) == 5


def test_keys_and_figures_that_no_run_leaves_do_not_end_the_report(tmp_path: Path) -> None:
    others = {"series": "x", "speedup/decode": "x", "model_bytes": "x", "target_bytes_dense": []}
    leave_cell(tmp_path / "runs", "svd", 0.8, 1.0, **others)
    leave(tmp_path / "runs" / "old", ratio=0.8, **others)
    cell = leave_cell(tmp_path / "runs", "kron", 0.8, 1.0)
    rows = json.loads((cell / "layers.json").read_text())
    (cell / "layers.json").write_text(json.dumps([rows[0] | {"energy_lost": float("inf")}, *rows[1:]]))
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    assert len(survey([tmp_path / "runs"])[0]) == 3


def test_a_report_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_cell(tmp_path / "runs", "kron", 0.8, 1.0)
    target = tmp_path / "to"
    target.mkdir()
    (target / "report.md").write_text("before")

    def half(path: Path, data: str) -> None:
        with path.open("w") as file:
            file.write(data[:9])
        full()

    monkeypatch.setattr(module.Path, "write_text", half)
    assert main([str(tmp_path / "runs"), "--to", str(target)]) == 1
    assert (target / "report.md").read_text() == "before"
    assert not list(target.glob(".*"))


def record(**values: Any) -> dict[str, Any]:
    return {"model": "m", "model_path": "a/m", "model_revision": None, "dtype": "float32", **values}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([record(model_fingerprint="f" * 20), record(model_fingerprint="f" * 20)], ["m", "m"]),
        ([record(), record()], ["m", "m"]),
        ([record(model_fingerprint="f" * 20), record()], ["m", "m (weights not recorded)"]),
        (
            [record(model_fingerprint="1" * 20), record(model_fingerprint="2" * 20, model_path="b/m")],
            ["m (a/m)", "m (b/m)"],
        ),
        (
            [
                record(model_fingerprint="1" * 20, model_revision="x"),
                record(model_fingerprint="2" * 20, model_revision="y", dtype="bfloat16"),
            ],
            ["m (x, float32)", "m (y, bfloat16)"],
        ),
        ([record(model_fingerprint="1" * 20), record(model_fingerprint="2" * 20)], ["m (11111111)", "m (22222222)"]),
        (
            [
                record(model_fingerprint="1" * 20),
                record(model_fingerprint="1" * 20, model_path="copy/m"),
                record(model_fingerprint="2" * 20, model_path="b/m"),
            ],
            ["m (11111111)", "m (11111111)", "m (22222222)"],
        ),
    ],
)
def test_weights_tell_models_of_one_name_apart(records: list[dict[str, Any]], said: list[str]) -> None:
    assert labels(records) == said


def test_different_weights_share_no_line_and_no_table_row(tmp_path: Path) -> None:
    for index, (method, ratio) in enumerate((("kron", 0.8), ("svd", 0.8), ("kron", 0.6), ("svd", 0.6))):
        weights = {"model_fingerprint": f"{index % 2}" * 20, "model_path": f"/{index % 2}/m"}
        leave_cell(tmp_path / "runs", method, ratio, 5.0, model="m", **weights)
    frame = tidy(survey([tmp_path / "runs"])[0])
    assert sorted(set(frame["label"])) == ["m (/0/m)", "m (/1/m)"]
    best = [row for row in best_per_ratio(frame)[1:] if row[1].startswith("wiki")]
    assert [(row[0], row[2], row[3]) for row in best] == [
        *(("m (/0/m)", "0.8", "kron"), ("m (/0/m)", "0.6", "kron")),
        *(("m (/1/m)", "0.8", "svd"), ("m (/1/m)", "0.6", "svd")),
    ]
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    assert len(list((tmp_path / "to" / "pictures").glob("perplexity-*.png"))) == 2


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", ["write_text", "write_bytes"])
def test_a_full_disk_is_said(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_cell(tmp_path / "runs", "kron", 0.8, 1.0)
    monkeypatch.setattr(module.Path, write, full)
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 1
    assert capsys.readouterr().err == f"svdexp: --to {tmp_path}/to cannot be written: No space left on device\n"


def test_a_report_printed_to_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "a", ratio=0.8)
    with Path("/dev/full").open("w") as device:
        monkeypatch.setattr(sys, "stdout", device)
        assert main([str(tmp_path)]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == "svdexp: the report cannot be printed: No space left on device\n"
