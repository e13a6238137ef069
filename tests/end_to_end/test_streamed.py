"""From a folder to checkpoint and perplexity with one block in memory: as a whole run, and killed on the way."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import svdexp
from tests.end_to_end.forked import Death, run

# in float32, because batches and single windows round differently in bfloat16
WORDS = ["precision=float32", "eval.efficiency=null", "ratio=0.6", "tracker=none", "hydra.run.dir=run"]
METHODS = {
    "kron": ["method=kron"],
    "some": ["method=svd_llm", "targets.exclude=['*.v_proj']", "storage=factors"],
    "svd": ["method=svd"],
    "svd_llm_v2": ["method=svd_llm_v2"],
    "drank": ["method=drank"],
    "fwsvd": ["method=fwsvd"],
    "asvd": ["method=asvd", "method/allocation=uniform"],
    "refined": [
        "method=svd_llm",
        "method/training=block_refine",
        "method.training.block_refine.steps=4",
        "method.training.block_refine.batch=2",
    ],
    "codes": ["method=quantise", "storage=rtn_int4"],  # which leave no linear layer in a block
}
DEATHS = {
    "forward": Death("svdexp.calibration.streamed:Sweep._pass", 3),
    "backward": Death("svdexp.calibration.streamed:Sweep._gradient", 9),
    "between": Death("svdexp.runtime.shelves:Shelf.put", 5, after=True),
    "truncation": Death("svdexp.models.residency:Residency.rewrite", 2, after=True),
    "saving": Death("svdexp.checkpoints.shards:share", 2),
}


def words_of(tiny_job: list[str], method: str, *more: str) -> list[str]:
    return [*(word for word in tiny_job if not word.startswith("eval.efficiency")), *WORDS, *METHODS[method], *more]


def figures(folder: Path) -> dict[str, Any]:
    """What the run measured, without times and memory; what is damped depends on the last digits of these sums."""
    results = json.loads((folder / "results.json").read_text())
    apart = ("seconds/", "peak_", "run_dir", "command", "damp")
    return {key: value for key, value in results.items() if not key.startswith(apart)}


def assert_equal(found: Path, wanted: Path) -> None:
    """Figures agree to 1e-5, weights to rounding, and all else exactly; the cells are the same."""
    ours, theirs = figures(found), figures(wanted)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert_alike(ours[key], value)
    assert (found / "ranks.json").read_text() == (wanted / "ranks.json").read_text()
    models = [svdexp.load(folder)[0] for folder in (found, wanted)]
    for (name, a), (_, b) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-4), name
    assert not (found / ".blocks").exists()
    assert not list(found.glob(".*.partial"))


def assert_alike(ours: Any, theirs: Any) -> None:
    """Equal, but for floating-point numbers, wherever they stand: those to 1e-5."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        theirs, ours = list(theirs.values()), list(ours.values())
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_alike(our, their)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-5) if isinstance(theirs, float) else theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where whole runs of each method are, once they were asked for."""
    return {}


def whole_run(tiny_job: list[str], method: str, done: dict[str, Path], folder: Path) -> Path:
    if method not in done:
        folder.mkdir()
        outcome = run(folder, words_of(tiny_job, method, "residency=whole"))
        assert outcome.returncode == 0, outcome.output
        done[method] = folder / "run"
    return done[method]


@pytest.mark.parametrize("method", METHODS)
def test_figures_and_checkpoint_are_those_of_a_whole_run(
    method: str, tiny_job: list[str], whole: dict[str, Path], tmp_path: Path
) -> None:
    outcome = run(tmp_path, words_of(tiny_job, method, "residency=streamed"))
    assert outcome.returncode == 0, outcome.output
    assert "streamed, on cpu" in (tmp_path / "run" / "svdexp.log").read_text()  # the estimate
    assert_equal(tmp_path / "run", whole_run(tiny_job, method, whole, tmp_path / "whole"))
    assert len(list((tmp_path / "run" / "checkpoint").glob("*.safetensors"))) == 1 + 3


@pytest.mark.parametrize("moment", DEATHS)
def test_killed_and_repeated(moment: str, tiny_job: list[str], whole: dict[str, Path], tmp_path: Path) -> None:
    words = words_of(tiny_job, "kron", "residency=streamed")
    assert run(tmp_path, words, DEATHS[moment]).returncode == -signal.SIGKILL
    again = run(tmp_path, words)
    assert again.returncode == 0, again.output
    assert_equal(tmp_path / "run", whole_run(tiny_job, "kron", whole, tmp_path / "whole"))


def test_what_cannot_be_streamed_is_refused_first(tiny_job: list[str], tmp_path: Path) -> None:
    outcome = run(tmp_path, [*tiny_job, "residency=streamed", "hydra.run.dir=run"])
    assert outcome.returncode == 1
    last = outcome.output.strip().splitlines()[-1]
    assert "generation speed needs the whole model; set eval.efficiency=null" in last
    assert not (tmp_path / "run" / "results.json").exists()
