"""SIGKILL at any moment: the same command, given again, ends with the results of an undisturbed run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.end_to_end.forked import Death, run

KRON = ["method=kron", "storage=factors"]
LEARNED = [
    *("method=svd_llm", "method/allocation=learned", "method.allocation.randomised=false"),
    *("method.allocation.epochs=3", "method.allocation.accumulation=1", "method.allocation.save_every=2"),
]

# what dies, where, and which stages are done then
DEATHS = {
    "calibration": (KRON, Death("svdexp.calibration.dense:_forward_and_backward", 3), []),
    "shelving statistics": (KRON, Death("svdexp.cache:Path.replace", 5), []),
    "decomposition": (KRON, Death("svdexp.factorisation.workbench:decompose", 10), []),
    "rank training": (LEARNED, Death("svdexp.allocation.rank_training:Training.step", 7), ["calibration"]),
    "evaluation": (KRON, Death("svdexp.evaluation.figures:perplexity", 2), ["calibration", "factorisation"]),
    "writing the checkpoint": (
        KRON,
        Death("transformers:PreTrainedModel.save_pretrained", after=True),
        ["calibration", "factorisation"],
    ),
    "renaming the checkpoint": (KRON, Death("svdexp.models.checkpoint:Path.rename"), ["calibration", "factorisation"]),
    "checking the checkpoint": (KRON, Death("svdexp.experiment:verify_checkpoint"), ["calibration", "factorisation"]),
    "the last line": (KRON, Death("svdexp.experiment:show"), None),
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
