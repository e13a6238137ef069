"""torchrun: two processes share one run."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Svdexp, read
from tests.end_to_end.forked import Outcome, run
from tests.support.two_processes import free_port

pytestmark = pytest.mark.any_format


def torchrun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "svdexp"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *words], cwd=folder, env=environment, capture_output=True, text=True)


def two_forks(folder: Path, *words: str) -> list[Outcome]:
    """What torchrun starts, without its launcher and its imports."""
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda rank: run(folder, words, RANK=rank, LOCAL_RANK=rank, **together), ("0", "1")))


def test_two_processes_leave_what_one_leaves(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    words = [*tiny_job, "method=kron", "ratio=0.5", "precision=float32"]  # in which perplexities are compared
    done = torchrun(tmp_path, *words, "cache=shared", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("achieved_ratio") == 1, "one process speaks"
    alone = svdexp_command(*words, "cache=own", "hydra.run.dir=one")
    assert alone.returncode == 0, alone.stderr
    two, one = read(tmp_path / "two"), read(tmp_path / "one")
    assert two.keys() == one.keys()
    assert two["cell"] == one["cell"]
    assert two["bytes"] == one["bytes"]
    for key in ("ppl/files", "ppl_dense/files"):
        assert abs(two[key] / one[key] - 1) < 1e-5
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert not (tmp_path / ".hydra").exists()
    again = two_forks(tmp_path, *words, "cache=shared", "hydra.run.dir=two")
    assert [process.returncode for process in again] == [0, 0], again
    assert "finished already" in again[0].output


def test_two_processes_that_stream_leave_what_one_leaves(
    svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path
) -> None:
    words = [*(word for word in tiny_job if "efficiency" not in word), "eval.efficiency=null", "calibration.samples=5"]
    words += ["method=kron", "ratio=0.5", "precision=float32"]
    both = two_forks(tmp_path, *words, "residency=streamed", "cache=shared", "hydra.run.dir=two")
    assert [process.returncode for process in both] == [0, 0], both
    assert "streamed, on cpu" in (tmp_path / "two" / "svdexp.log").read_text()
    alone = svdexp_command(*words, "residency=whole", "cache=own", "hydra.run.dir=one")
    assert alone.returncode == 0, alone.stderr
    two, one = read(tmp_path / "two"), read(tmp_path / "one")
    assert two.keys() == one.keys()
    for key in ("ppl/files", "ppl_dense/files"):
        assert two[key] == pytest.approx(one[key], rel=1e-5)
    assert (tmp_path / "two" / "ranks.json").read_text() == (tmp_path / "one" / "ranks.json").read_text()
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert list((tmp_path / "shared" / "states").glob("*/*")) == []


def test_a_mistake_ends_both(tiny_job: list[str], tmp_path: Path) -> None:
    done = two_forks(tmp_path, *tiny_job, "cache=null", "hydra.run.dir=two")
    assert [process.returncode for process in done] == [1, 1], done
    assert "svdexp: cache=null keeps finished stages in memory, but processes share files" in done[0].stderr
