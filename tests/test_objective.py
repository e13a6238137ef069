"""What a sweeper that searches is told of a finished run."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from svdexp.cells.guard import objective
from svdexp.runtime.errors import UserError


@pytest.fixture
def _finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"ppl/pydoc": 11.5, "method": "svd"}))
    place = OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}, "mode": RunMode.MULTIRUN})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: place))


@pytest.mark.usefixtures("_finished")
def test_the_figure_that_was_asked_for() -> None:
    assert objective(OmegaConf.create({"objective": "ppl/pydoc", "dry_run": False})) == 11.5
    assert objective(OmegaConf.create({"objective": None, "dry_run": False})) is None
    assert objective(OmegaConf.create({"objective": "ppl/pydoc", "dry_run": True})) is None
    for key in ("method", "ppl/wikitext2"):
        with pytest.raises(UserError, match=f"objective={key} is no figure"):
            objective(OmegaConf.create({"objective": key, "dry_run": False}))


@pytest.mark.usefixtures("_finished")
def test_a_single_run_ends_with_the_sentence_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    single = OmegaConf.merge(HydraConfig.get(), {"mode": RunMode.RUN})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: single))
    with pytest.raises(SystemExit, match="1"):
        objective(OmegaConf.create({"objective": "ppl/x", "dry_run": False}))
    assert capsys.readouterr().err == "svdexp: objective=ppl/x is no figure in the run's results.json\n"
