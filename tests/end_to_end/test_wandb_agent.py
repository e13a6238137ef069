"""W&B's agent starts a run of launch/wandb_sweep.yaml as it does for its server, and the server gets the figures."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.wandb_agent import Agent

from tests.end_to_end.conftest import read
from tests.tracking.wandb_server import KEY, serving

PATH = Path(__file__).parents[2] / "launch" / "wandb_sweep.yaml"


def test_a_run_that_an_agent_starts(tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(name, "")
    operators = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sweep: dict[str, Any] = yaml.safe_load(PATH.read_text())
    words = [word for word in tiny_job if not word.startswith(("tracker", "eval.efficiency"))]
    with serving() as server:
        variables = {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_DIR": str(tmp_path),
            "HOME": str(tmp_path),
            "TORCH_EXTENSIONS_DIR": str(operators),  # where that home has none, and compiling takes half a minute
        }
        variables |= {"WANDB_SWEEP_ID": "search", "WANDB_PROJECT": "theirs", "HF_HUB_OFFLINE": "1"}
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        agent: Any = Agent(None, None, sweep_id="search")
        agent._sweep_command = [*sweep["command"], *words]
        chosen = {"method": "svd", "ratio": 0.5, "save": "none", "eval.efficiency": "null"}
        assert chosen.keys() == sweep["parameters"].keys()
        args = {key: {"value": value} for key, value in chosen.items()}
        agent._command_run({"type": "run", "run_id": "first", "program": sweep["program"], "args": args})
        assert agent._run_processes["first"].wait() == 0
    results = read(tmp_path / "outputs" / "wandb_sweeps" / "search" / "first")
    assert (results["method"], results["ratio"]) == ("svd", 0.5)
    assert results["tracker_url"] == f"{server.url}/me/theirs/runs/first"
    assert server.summaries["first"]["ppl/files"] == results["ppl/files"]
    assert server.runs["first"]["sweep"] == "search"
    assert server.exits == {"first": 0}
