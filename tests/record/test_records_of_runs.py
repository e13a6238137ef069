"""What runs write is what is declared, no more and no less."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from svdexp.cells.guard import config_dir
from svdexp.record import misfits, place
from svdexp.record import results as keys
from svdexp.report.sound import layers_fault
from svdexp.runs import compression as experiment
from svdexp.runs import evaluation as standalone
from svdexp.schema import Config, EvaluateConfig, validate, validate_evaluation

# Of generative tasks, which tests/evaluation/test_library.py runs.
SCORES = {keys.SCORE, keys.SCORE_STDERR}
# What runs on CUDA alone have, what evaluations alone have, and what choosing forms or looking for a ratio alone gives.
ELSEWHERE = {keys.PEAK_DEVICE, keys.PEAK_DEVICE_BY_STAGE, keys.FILE_BYTES, keys.FORMS, keys.SEARCH} | SCORES
ROWS = [{"goal": "the rank of", "sol1": "a matrix", "sol2": "its rows", "label": row % 2} for row in range(4)]
# Figures that an evaluation alone has, too.
MEASURED = {keys.PPL, keys.PPL_STDERR, keys.PPL_TOKENS, keys.ACC, keys.SPEED, keys.LATENCY, keys.PARAMS, keys.BYTES}
MEASURED |= {keys.FILE_BYTES}


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture
def measured(text_file: Path, tmp_path: Path) -> list[str]:
    """Every kind of figure, of little work."""
    (tmp_path / "tasks" / "piqa").mkdir(parents=True)
    (tmp_path / "tasks" / "piqa" / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    text = ["eval.texts=[files]", f"eval.files=[{text_file}]", "eval.windows=1", "eval.seq_len=32"]
    tasks = ["eval.tasks=[piqa]", f"eval.tasks_dir={tmp_path}/tasks", "eval.prompts=[the rank]"]
    speed = [f"eval.efficiency.{option}" for option in ("prompt=4", "generate=2", "repeats=1")]
    return [*text, *tasks, *speed, "cache=null", "precision=float32", "model.name=tiny"]


def test_a_compressions_record(
    model_folder: Path, other_text_file: Path, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ConfigStore.instance().store(name="schema", node=Config)
    text = ["calibration=files", f"calibration.files=[{other_text_file}]", "calibration.samples=4"]
    text += ["calibration.seq_len=32", "method/training=distill", "tracker=none", "save=checkpoint"]
    text += [f"method.training.distill.{option}" for option in ("steps=2", "seq_len=32", "held_out=0.5")]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("config", [f"model.path={model_folder}", "method=svd_llm", "ratio=0.6", *text, *measured])
        experiment.run(validate(cfg), tmp_path / "run")
    record = read(tmp_path / "run")
    assert misfits(record) == []
    written = {found.entry for key in record if (found := place(key))}
    assert set(keys.ENTRIES) - written == ELSEWHERE
    twins = {found.entry for key in record if (found := place(key)) and found.of_dense}
    assert twins == {entry for entry in keys.ENTRIES if entry.twin} - SCORES


def test_a_choice_of_forms_is_on_record(
    model_folder: Path, other_text_file: Path, measured: list[str], tmp_path: Path
) -> None:
    ConfigStore.instance().store(name="schema", node=Config)
    text = ["calibration=files", f"calibration.files=[{other_text_file}]", "calibration.samples=4"]
    text += ["calibration.seq_len=32", "tracker=none", "save=none", "storage.forms=[rtn2-g8,gptq4-g8,pivot,dense]"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("config", [f"model.path={model_folder}", "method=mixed", "ratio=0.3", *text, *measured])
        experiment.run(validate(cfg), tmp_path / "run")
    record, rows = read(tmp_path / "run"), json.loads((tmp_path / "run" / "layers.json").read_text())
    chosen = json.loads((tmp_path / "run" / "forms.json").read_text())
    assert misfits(record) == []
    assert layers_fault(rows) is None
    assert {row["name"]: row["form"] for row in rows} == chosen
    assert keys.FORMS.of(record) == Counter(form.partition("@")[0] for form in chosen.values())
    assert all(0 <= row["energy_lost"] < 1 for row in rows)


def test_an_evaluations_record(model_folder: Path, measured: list[str], tmp_path: Path) -> None:
    ConfigStore.instance().store(name="schema", node=EvaluateConfig)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        standalone.run(validate_evaluation(compose("evaluate", [f"path={model_folder}", *measured])), tmp_path / "run")
    ConfigStore.instance().store(name="schema", node=Config)
    record = read(tmp_path / "run")
    assert misfits(record) == []
    places = [found for key in record if (found := place(key))]
    assert {found.entry for found in places} >= MEASURED
    assert not any(found.of_dense for found in places)
