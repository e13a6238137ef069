"""What one run does once: a run that would die of one more call of it ends well, and one that dies of the last does."""

import signal
from pathlib import Path

import pytest

from tests.end_to_end.forked import Death, run


@pytest.mark.parametrize(
    ("where", "calls"),
    [("svdexp.models.fingerprint:readable_tensors", 2), ("svdexp.engine.plan:find_matrices", 1)],
    ids=["the dense and the compressed model are hashed once each", "the plan is made once"],
)
def test_a_run_does_it_no_more_often(tiny_job: list[str], tmp_path: Path, where: str, calls: int) -> None:
    words = [*tiny_job, "method=svd_llm", "ratio=0.6", "eval.efficiency=null", "save=none"]
    assert run(tmp_path, words, Death(where, calls)).returncode == -signal.SIGKILL
    assert run(tmp_path, words, Death(where, calls + 1)).returncode == 0
