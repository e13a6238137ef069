"""The identity of a cell: configuration and contents, wherever it runs."""

import shutil
from pathlib import Path

import pytest

from svdexp.cells import identity as module
from svdexp.cells.identity import digest, files_behind, identity_of
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, EvaluateConfig, MethodConfig, ModelConfig, Save


@pytest.fixture
def config(model_folder: Path, text_file: Path, tmp_path: Path) -> Config:
    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copy(text_file, tmp_path / "words.txt")
    (tmp_path / "ranks.json").write_text("{}")
    text = str(tmp_path / "words.txt")
    return Config(
        model=ModelConfig(name="tiny", path=str(tmp_path / "model")),
        method=MethodConfig(name="svd", weighting=None, allocation={"path": str(tmp_path / "ranks.json")}),
        storage={},
        calibration=CalibrationConfig(text="files", files=[text]),
        eval=EvalConfig(name="quick", texts=["files", "pydoc"], files=[text]),
        ratio=0.5,
        cache=None,
    )


def test_incidental_keys_do_not_count(config: Config) -> None:
    before = identity_of(config)
    config.save, config.cache, config.eval.batch_size = Save.none, "elsewhere", 3
    assert identity_of(config) == before
    config.seed = 1
    assert identity_of(config) != before


@pytest.mark.parametrize("file", ["model/config.json", "model/model.safetensors", "words.txt", "ranks.json"])
def test_contents_count_and_times_do_not(config: Config, tmp_path: Path, file: str) -> None:
    before = identity_of(config)
    (tmp_path / file).touch()
    assert identity_of(config) == before
    data = bytearray((tmp_path / file).read_bytes())
    data[-1] ^= 1
    (tmp_path / file).write_bytes(bytes(data))
    assert identity_of(config) != before


def test_every_file_is_named(config: Config) -> None:
    names = {name for name in files_behind(config) if not name.startswith("model/")}
    assert names == {"calibration/0", "allocation/0", "files/0", "pydoc/0"}


def test_what_is_missing_is_named(config: Config) -> None:
    config.eval.files = ["nowhere.txt"]
    with pytest.raises(UserError, match=r"eval\.files: nowhere\.txt"):
        identity_of(config)


def test_a_model_of_the_hub_has_no_files() -> None:
    config = EvaluateConfig(path="owner/name", model=ModelConfig(name="n", path="owner/name"), cache=None)
    assert files_behind(config) == {}


def test_of_a_run_its_checkpoint_counts(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "run" / "checkpoint")
    config = EvaluateConfig(path=str(tmp_path), model=ModelConfig(name="n", path=str(tmp_path / "run")), cache=None)
    assert "model/model.safetensors" in files_behind(config)


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 2)
    file, notes = tmp_path / "file", tmp_path / "notes"
    file.write_text("abc")
    found = digest(file, notes)
    (note,) = notes.iterdir()
    assert note.read_text() == found
    note.write_text("known")
    assert digest(file, notes) == "known"
    file.write_text("abcd")
    assert digest(file, notes) not in (found, "known")
