"""Run svdexp as a user does: a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import forked

Svdexp = Callable[..., forked.Outcome]


def read(run_dir: Path) -> dict[str, Any]:
    """The run's record."""
    results: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return results


@pytest.fixture
def svdexp_command(tmp_path: Path) -> Svdexp:
    """`python -m svdexp WORDS` in an empty folder, without a hub; keyword arguments are environment variables.

    Forked from a process that has imported torch and transformers, which takes ten times as long as such a run.
    """

    def run(*words: str, **variables: str) -> forked.Outcome:
        return forked.run(tmp_path, words, **variables)

    return run


@pytest.fixture
def fresh_command(tmp_path: Path) -> Svdexp:
    """The same with an interpreter of its own, for what depends on who imports what, and when."""

    def run(*words: str, **variables: str) -> forked.Outcome:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | variables
        command = [sys.executable, "-m", "svdexp", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return forked.Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def tiny_job(model_folder: Path, text_file: Path, other_text_file: Path) -> list[str]:
    """Overrides that make the main job small: a tiny model and local text."""
    return [
        "tracker=none",
        f"model.path={model_folder}",
        "calibration=files",
        f"calibration.files=[{text_file}]",
        "calibration.samples=4",
        "calibration.seq_len=32",
        "eval.texts=[files]",
        f"eval.files=[{other_text_file}]",
        "eval.windows=4",
        "eval.seq_len=32",
        "eval.efficiency.prompt=8",
        "eval.efficiency.generate=4",
        "eval.efficiency.repeats=1",
    ]
