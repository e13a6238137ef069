"""Evaluation without compression: which folders are models, and what is refused before one is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import svdexp.runs.evaluation as module
from svdexp.runs.evaluation import file_bytes, find, run
from svdexp.runtime.errors import UserError
from svdexp.schema import EvalConfig, EvaluateConfig, ModelConfig
from tests.evaluation.task_rows import write_local


def config(path: Path | str, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(str(path), ModelConfig(str(path), str(path)), EvalConfig(**options), cache=None)


def test_a_run_means_its_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "run" / "checkpoint")
    assert find(ModelConfig("", str(tmp_path / "run"))).path == str(tmp_path / "run" / "checkpoint")
    assert find(ModelConfig("", str(model_folder))).path == str(model_folder)
    assert find(ModelConfig("", "owner/model")).path == "owner/model"


def test_neither_a_model_nor_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"path=.* is neither a model, with config\.json, nor a run, with checkpoint/"):
        find(ModelConfig("", str(tmp_path)))
    with pytest.raises(UserError, match="/nowhere/at/all is not a folder"):
        find(ModelConfig("", "/nowhere/at/all"))


def test_what_the_files_take_is_known_of_those_on_this_disk(model_folder: Path, tmp_path: Path) -> None:
    weights = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    assert file_bytes(ModelConfig("", str(model_folder))) == {"file_bytes": weights}
    twice = shutil.copytree(model_folder, tmp_path / "twice")
    shutil.copy(twice / "model.safetensors", twice / "consolidated.safetensors")  # as Mistral's folders have it
    assert file_bytes(ModelConfig("", str(twice))) == {"file_bytes": weights}
    (tmp_path / "a.gguf").write_bytes(b"x" * 77)
    (tmp_path / "b.gguf").write_bytes(b"x" * 99)
    assert file_bytes(ModelConfig("", str(tmp_path / "a.gguf"))) == {"file_bytes": 77}
    assert file_bytes(ModelConfig("", "owner/model")) == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": ["arc"]}, r"eval\.tasks: no task is called 'arc'"),
        ({"tasks": ["mmlu"]}, r"eval\.tasks_dir=.* has no mmlu/test\.jsonl"),
        ({"tasks": ["piqa"], "num_fewshot": 2}, r"eval\.num_fewshot=2 takes examples from piqa/dev\.jsonl"),
        ({"texts": ["pydok"]}, r"eval\.texts: no text is called 'pydok'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    options: dict[str, Any], sentence: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load", None)
    write_local(tmp_path, ["piqa"], count=3)
    with pytest.raises(UserError, match=sentence):
        run(config(model_folder, **({"tasks_dir": str(tmp_path)} | options)), tmp_path)


def test_a_checkpoint_of_another_version(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "other")
    table = json.loads((model_folder / "config.json").read_text()) | {"svdexp": {"version": 99}}
    (tmp_path / "other" / "config.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="other was not written by this version of svdexp"):
        run(config(tmp_path / "other"), tmp_path)
