"""Which cells a launcher starts a process for."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hydra_plugins.svdexp_sweeps import launching
from svdexp.cells.guard import config_dir
from svdexp.schema import Config


def test_a_finished_cell_whose_tracker_was_not_told_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ConfigStore.instance().store(name="schema", node=Config)
    place = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=cell"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("config", place, return_hydra_config=True)
    OmegaConf.set_readonly(composed.hydra, None)
    context: Any = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=lambda *_: copy.deepcopy(composed)))
    monkeypatch.setattr(launching, "is_finished", lambda *_: True)
    cell, finished = launching.look_at(context, composed, [], 0)
    assert (cell.folder, finished) == (tmp_path / "cell", True)
    cell.folder.mkdir()
    (cell.folder / "untracked.json").touch()
    assert not launching.look_at(context, composed, [], 0)[1]
