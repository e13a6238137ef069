"""What a dry run takes away again, and what it leaves alone."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from svdexp.cells.traces import as_before, is_dry, one_dry_run, remove_traces
from svdexp.runtime.errors import UserError


@pytest.mark.parametrize(
    ("value", "dry"), [(False, False), ({"device": None}, False), (True, True), ({"device": "rtx4090"}, True)]
)
def test_a_dry_run_is_asked_for_in_two_ways(value: object, dry: bool) -> None:
    assert is_dry(OmegaConf.create({"dry_run": value})) is dry
    assert is_dry(SimpleNamespace(dry_run=value)) is dry


@pytest.mark.parametrize("value", ["maybe", {"devise": "this"}, 3])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(UserError, match="is neither true nor false"):
        is_dry(OmegaConf.create({"dry_run": value}))


def test_no_run_of_an_evaluation_is_dry() -> None:
    assert not is_dry(OmegaConf.create({"path": "x"}))


def test_a_device_makes_the_plain_word_superfluous() -> None:
    assert one_dry_run(["dry_run=true", "dry_run.device=rtx4090"]) == ["dry_run.device=rtx4090"]
    assert one_dry_run(["dry_run=true", "ratio=1"]) == ["dry_run=true", "ratio=1"]


def test_empty_folders_below_the_working_directory_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, full = Path("outputs/runs/one"), Path("outputs/full")
    for folder in (run, full):
        folder.mkdir(parents=True)
        handler = logging.FileHandler(folder / "svdexp.log")
        logging.getLogger().addHandler(handler)
    (full / "results.json").write_text("{}")
    (full / "svdexp.log").write_text("earlier")
    remove_traces(run)
    assert not Path("outputs/runs").exists()
    remove_traces(full)
    assert sorted(path.name for path in full.iterdir()) == ["results.json", "svdexp.log"]
    files = [
        handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)
    ]
    assert not [file for file in files if file.startswith(str(tmp_path))]
    remove_traces(tmp_path / "not" / "there")
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    remove_traces(tmp_path / "elsewhere" / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_is_put_back(tmp_path: Path) -> None:
    kept, new = tmp_path / "sweep" / "multirun.yaml", tmp_path / "other" / "multirun.yaml"
    kept.parent.mkdir()
    kept.write_text("mine")
    for file in (kept, new):
        with as_before(file):
            file.parent.mkdir(exist_ok=True)
            file.write_text("changed")
    assert kept.read_text() == "mine"
    assert not new.parent.exists()
