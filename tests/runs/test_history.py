"""A run's record says what its model learnt from, and evaluations alone refuse that."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import svdexp
import svdexp.door.evaluate as door
import svdexp.runs.evaluation as module
from svdexp.runs.evaluation import run
from svdexp.runs.history import learnt_by, learnt_in
from svdexp.runtime.errors import UserError
from svdexp.schema import EvalConfig, EvaluateConfig, ModelConfig
from tests.conftest import tiny_tokenizer

CALIBRATION = {"text": "files", "samples": 4, "seq_len": 80, "sampling": "first", "bos": "tokenizer"}


@pytest.fixture
def run_folder(model_folder: Path, text_file: Path, tmp_path: Path) -> Path:
    """A run directory whose record says that `text_file` calibrated."""
    folder = tmp_path / "run"
    shutil.copytree(model_folder, folder / "checkpoint")
    note(folder, calibration={**CALIBRATION, "files": [str(text_file)]}, calibration_bos="none", seed=0)
    return folder


def note(folder: Path, **record: Any) -> None:
    (folder / "results.json").write_text(json.dumps(record))


def measure(folder: Path, tmp_path: Path, **options: Any) -> dict[str, object]:
    part = EvalConfig("ppl", windows=2, seq_len=80 if "seq_len" not in options else options.pop("seq_len"), **options)
    return run(EvaluateConfig(str(folder), ModelConfig("tiny", str(folder)), part, cache=None), tmp_path)


def test_the_file_that_calibrated_is_refused(
    run_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (module, door):
        monkeypatch.setattr(place, "load", None)  # before the model is read
    copied = shutil.copy(text_file, tmp_path / "copied.txt")
    for folder in (run_folder, run_folder / "checkpoint"):
        for file in (str(text_file), str(copied)):
            with pytest.raises(UserError, match=r"^calibration\.files .*what calibrates or trains cannot evaluate"):
                measure(folder, tmp_path, texts=["files"], files=[file])
    with pytest.raises(svdexp.UserError, match=r"^calibration\.files and eval\.files share"):
        svdexp.evaluate(run_folder, text_file)


def test_what_a_training_learnt_from_is_refused(
    run_folder: Path, other_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load", None)
    options = {"text": "files", "files": [str(other_text_file)], "chat": False, "samples": 2, "seq_len": 16, "r": 8}
    trained = {"sequential_lora": {"name": "sequential_lora", "options": options, "tokens": 1, "curve": []}}
    note(run_folder, training=trained)
    with pytest.raises(UserError, match=r"^method\.training\.sequential_lora\.files and eval\.files share"):
        measure(run_folder, tmp_path, texts=["files"], files=[str(other_text_file)])


def test_passages_of_it_are_warned_of(
    run_folder: Path, text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "more.txt").write_text(text_file.read_text() + " and a rank")
    measure(run_folder, tmp_path, texts=["files"], files=[str(tmp_path / "more.txt")])
    assert any(
        "2 of 2 windows hold passages of 64 or more tokens that calibration holds too" in m for m in caplog.messages
    )


def test_rows_of_the_same_split_are_refused(run_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the rank"}\n')
    about = {"dataset": str(rows), "subset": None, "split": "train", "column": "text"}
    note(run_folder, calibration={**CALIBRATION, "text": "hub", "files": [], **about})
    with pytest.raises(UserError, match=r"^calibration\.split and eval\.split are both train"):
        measure(run_folder, tmp_path, texts=["hub"], **about)


def test_other_models_and_texts_that_are_gone_say_nothing(
    run_folder: Path, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not learnt_by(model_folder).excerpts
    assert not learnt_in({"calibration": {**CALIBRATION, "files": [str(tmp_path / "gone.txt")]}}).excerpts
    assert not learnt_in({"calibration": {**CALIBRATION, "text": "given", "files": []}}).excerpts
    assert learnt_in({"calibration": {**CALIBRATION, "text": "pydoc", "files": []}}).windows(tiny_tokenizer())
    (run_folder / "results.json").write_text("{")
    assert not learnt_by(run_folder / "checkpoint").excerpts
    assert "does not say what this model learnt from" in caplog.text
