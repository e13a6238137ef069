"""What was kept is sent, with W&B's real client, to a server of the test's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from svdexp.cells.guard import config_dir
from svdexp.schema import Config, validate
from svdexp.tracking import Findings, WandbTracker, tracked
from svdexp.tracking.sync import main
from tests.tracking.conftest import forget_wandb
from tests.tracking.wandb_server import KEY, NOBODY, Server, serving

CELLS = ["a" * 20, "b" * 20]
FOUND: dict[str, Any] = {"method": "svd", "ratio": 0.5, "training": {}, "ppl/files": 7.5}
ROW = {"name": "a", "block": 0, "projection": "up", "m": 4, "n": 4, "rank": 2, "energy_lost": 0.1}


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home and a folder without anything of W&B's."""
    forget_wandb(monkeypatch, tmp_path, tmp_path)
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        yield found
        wandb.teardown()


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A sweep of two finished cells that were tracked offline; of the second the tracker was not told the end."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("config", ["ratio=0.5", "tracker.project=ours"])
    folder = tmp_path / "grid"
    for cell in CELLS:
        run_dir = folder / cell
        (run_dir / ".hydra").mkdir(parents=True)
        (run_dir / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        findings = Findings(FOUND | {"cell": cell, "tracker_url": None}, [ROW])
        for name, content in (("results", findings.results), ("layers", findings.layers), ("ranks", {})):
            (run_dir / f"{name}.json").write_text(json.dumps(content))
        findings.leave(run_dir)
        with tracked(WandbTracker(project="ours"), validate(cfg), run_dir, cell) as telling:
            if cell == CELLS[0]:
                telling.findings(findings)
    wandb.teardown()
    return folder


def test_what_was_kept_is_sent_once(
    grid: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")  # what a machine without a network is told
    wandb.teardown()
    assert main([str(grid)]) == 0
    assert server.runs.keys() == set(CELLS)
    assert {run["project"] for run in server.runs.values()} == {"ours"}
    assert {name: summary["ppl/files"] for name, summary in server.summaries.items()} == dict.fromkeys(CELLS, 7.5)
    said = capsys.readouterr().out
    urls = {cell: f"{server.url}/me/ours/runs/{cell}" for cell in CELLS}
    for cell, url in urls.items():
        assert json.loads((grid / cell / "results.json").read_text())["tracker_url"] == url
        assert f"{grid / cell}: {url}\n" in said
    assert not list(grid.glob("*/untracked.json"))
    server.asked.clear()
    assert main([str(grid)]) == 0
    assert server.asked == []
    assert capsys.readouterr().out == "nothing waits to be sent\n"


def test_without_a_login_one_sentence(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(grid)]) == 1
    assert capsys.readouterr().err == "svdexp: 2 runs wait for W&B, but there is no login (`wandb login`)\n"


def test_without_an_answer_one_sentence(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    assert main([str(grid)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"svdexp: 2 runs wait for W&B, but Failed to authenticate with {NOBODY}")
    assert len(list(grid.glob("*/untracked.json"))) == 1


def test_what_is_still_at_work_is_left(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(grid / CELLS[0] / ".lock"), FileLock(grid / CELLS[1] / ".lock"):
        assert main([str(grid)]) == 0
    assert "a process is at work there; left for later" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 1
    assert capsys.readouterr().err == "svdexp: nowhere is no folder\n"
