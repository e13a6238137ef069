"""Dobi-SVD from the command line, and rank training that is killed in the middle."""

import json
import signal
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Svdexp, read
from tests.end_to_end.forked import Death, run

TRAINING = ["method/allocation=learned_quick", "method.allocation.seq_len=32", "method.allocation.epochs=40"]


def ranks_of(run: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = json.loads((run / "ranks.json").read_text())
    return found


@pytest.mark.parametrize("method", ["dobi", "dobi_noremap"])
def test_main_job(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path, method: str) -> None:
    """Ranks, factors and a checkpoint that gives the same logits; the method brings its storage."""
    words = [f"method={method}", *TRAINING, "method.allocation.epochs=2", "ratio=0.6", "hydra.run.dir=run"]
    result = svdexp_command(*tiny_job, *words)
    assert result.returncode == 0, result.stderr
    results = read(tmp_path / "run")
    assert 0.55 < results["achieved_ratio"] <= 0.6
    assert results["storage"] == {"dobi": "remap", "dobi_noremap": "factors"}[method]
    assert results["energy_lost_mean"] is None
    assert results["reload_max_logit_difference"] < 1e-5
    assert "learned ranks, step 2 of 2: perplexity" in (tmp_path / "run" / "svdexp.log").read_text()


def test_training_that_is_killed_ends_at_the_same_ranks(
    svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path
) -> None:
    words = [*tiny_job, "method=dobi_noremap", *TRAINING, "ratio=0.6", "save=none", "method.allocation.save_every=1"]
    undisturbed = svdexp_command(*words, "hydra.run.dir=undisturbed", "cache=one")
    assert undisturbed.returncode == 0, undisturbed.stderr

    death = Death("svdexp.allocation.rank_training:RankTraining.step", 4)
    killed = run(tmp_path, [*words, "hydra.run.dir=killed", "cache=two"], death)
    assert killed.returncode == -signal.SIGKILL, killed.output
    assert list((tmp_path / "two").rglob("learned_ranks/*/state.safetensors"))

    resumed = svdexp_command(*words, "hydra.run.dir=resumed", "cache=two")
    assert resumed.returncode == 0, resumed.stderr
    assert "learned ranks: going on after step 3 of " in (tmp_path / "resumed" / "svdexp.log").read_text()
    assert ranks_of(tmp_path / "resumed") == ranks_of(tmp_path / "undisturbed")
