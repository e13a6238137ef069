"""SIGKILL at any moment: the same command, given again, ends with the results of an undisturbed run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.end_to_end.forked import Death, run
from tests.tracking.wandb_file import Tracked, finished

KRON = ["method=kron", "storage=factors"]
LEARNED = [
    *("method=svd_llm", "method/allocation=learned", "method.allocation.randomised=false"),
    *("method.allocation.epochs=3", "method.allocation.accumulation=1", "method.allocation.save_every=2"),
]

# what dies, where, and which stages are done then
DEATHS = {
    "calibration": (KRON, Death("svdexp.calibration.dense:forward_and_backward", 3), []),
    "shelving statistics": (KRON, Death("svdexp.runtime.shelves:Path.replace", 5), []),
    "decomposition": (KRON, Death("svdexp.engine.workbench:decompose", 10), []),
    "rank training": (LEARNED, Death("svdexp.allocation.rank_training:RankTraining.step", 7), ["calibration"]),
    "evaluation": (KRON, Death("svdexp.evaluation.figures:perplexity", 2), ["calibration", "factorisation"]),
    "writing the checkpoint": (
        KRON,
        Death("transformers:PreTrainedModel.save_pretrained", after=True),
        ["calibration", "factorisation"],
    ),
    "renaming the checkpoint": (
        KRON,
        Death("svdexp.checkpoints.checkpoint:Path.rename"),
        ["calibration", "factorisation"],
    ),
    "checking the checkpoint": (
        KRON,
        Death("svdexp.runs.compression:verify_checkpoint"),
        ["calibration", "factorisation"],
    ),
    "the last line": (KRON, Death("svdexp.runs.compression:show"), None),
}

# What a record says of the run, not of the model.
OTHERWISE = ("seconds/", "peak_", "run_dir")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """Where an undisturbed run of these words is; there is one of each."""
    done: dict[tuple[str, ...], Path] = {}

    def find(words: list[str]) -> Path:
        if tuple(words) not in done:
            done[tuple(words)] = folder = tmp_path_factory.mktemp("calm")
            assert run(folder, words).returncode == 0
        return done[tuple(words)] / "run"

    return find


def test_a_tracker_that_was_not_told_is_told_by_the_next_start(
    tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that an undisturbed run tells W&B, under the same id; once."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    words = [word for word in tiny_job if not word.startswith(("eval.efficiency", "tracker"))]
    words += ["eval.efficiency=null", "ratio=0.6", "save=none", *LEARNED]
    words += ["method/training=distill", "method.training.distill.seq_len=16", "method.training.distill.steps=2"]
    (tmp_path / "calm").mkdir()
    assert run(tmp_path / "calm", [*words, "hydra.run.dir=run"]).returncode == 0
    expected = finished(tmp_path / "calm" / "run")

    words.append("hydra.run.dir=run")
    death = Death("svdexp.tracking.wandb_tracker:WandbSession.log")
    assert run(tmp_path, words, death).returncode == -signal.SIGKILL
    found = tmp_path / "run"
    (killed,) = found.glob("wandb/offline-run-*")
    assert "ppl/files" not in Tracked(found).summary
    again = run(tmp_path, words)
    assert again.returncode == 0, again.output
    assert "finished already" in again.output
    told, results = finished(found), json.loads((found / "results.json").read_text())
    assert told.folder.name != killed.name
    # by its file's name: what the killed run said of itself may not have been written
    assert [path.stem for path in killed.glob("run-*.wandb")] == [f"run-{results['cell']}"]
    assert told.run.run_id == results["cell"]
    assert told.exit_code == 0
    assert told.summary["ppl/files"] == results["ppl/files"]
    assert told.summary.keys() == expected.summary.keys()
    rest = [row for row in expected.history if not any(key.startswith("seconds/") for key in row)]
    assert [row.keys() for row in told.history] == [row.keys() for row in rest]
    for key in ("layers", "spectra", "gamma"):
        assert told.table(key) == expected.table(key)
    assert told.artifacts == expected.artifacts
    sessions = list(found.glob("wandb/offline-run-*"))
    assert len(sessions) == 2
    assert run(tmp_path, words).returncode == 0
    assert list(found.glob("wandb/offline-run-*")) == sessions


def record(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if not key.startswith(OTHERWISE)}


@pytest.mark.parametrize("moment", DEATHS)
def test_killed_and_repeated(
    moment: str, tiny_job: list[str], calm: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    words, death, done = DEATHS[moment]
    fixed = [word for word in tiny_job if not word.startswith("eval.efficiency")]
    words = [*fixed, "eval.efficiency=null", *words, "ratio=0.6", "hydra.run.dir=run"]
    expected, found = calm(words), tmp_path / "run"
    assert run(tmp_path, words, death).returncode == -signal.SIGKILL
    finished = (found / "results.json").is_file()
    assert finished == (done is None)
    again = run(tmp_path, words)
    assert again.returncode == 0, again.output
    assert ("finished already" in again.output) == finished
    assert record(found) == record(expected)
    results = json.loads((found / "results.json").read_text())
    for stage in done or []:
        assert f"seconds/{stage}" not in results, f"{stage} was repeated"
    assert (found / "ranks.json").read_text() == (expected / "ranks.json").read_text()
    ours, theirs = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert not list(found.glob(".checkpoint*"))
