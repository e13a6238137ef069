"""A grid on a real SLURM of this one machine, with accounting; one cell is cancelled while it computes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_format

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm_cluster_for_tests.sh"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find it."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {SCRIPT.name} says which packages have them")
    if os.geteuid() != 0:
        pytest.skip("starting SLURM takes root")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    log = folder.with_suffix(".log")
    try:
        with log.open("w") as file:  # no pipe: the daemons would hold it open
            done = subprocess.run([SCRIPT, "start", folder], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        if done.returncode != 0:
            pytest.skip(f"SLURM does not start here: {log.read_text().strip()}")
        yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
        shutil.rmtree(folder)
        log.unlink()


class Launcher:
    """`python -m svdexp -m … hydra/launcher=slurm` in the background."""

    def __init__(self, folder: Path, words: list[str], environment: dict[str, str]):
        self.printed = folder / "printed.txt"
        own = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.array_parallelism=2"]
        own += ["hydra.launcher.gpus_per_node=null", "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=600"]
        command = [sys.executable, "-m", "svdexp", "-m", *words, *own]
        with self.printed.open("w") as file:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)

    def jobs(self) -> dict[str, Path]:
        """The folder of each job's cell."""
        return {job: Path(cell) for job, cell in re.findall(r"job (\S+): (\S+)$", self.printed.read_text(), re.M)}

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait()


def test_a_grid_with_a_cancelled_cell(cluster: dict[str, str], tiny_job: list[str], tmp_path: Path) -> None:
    words = [*tiny_job, "save=none", "method=svd,svd_llm", "ratio=0.5,0.6", "hydra.sweep.dir=sweep"]
    launcher = Launcher(tmp_path, words, cluster)
    while not (started := {job: cell for job, cell in launcher.jobs().items() if (cell / ".lock").exists()}):
        assert launcher.process.poll() is None, launcher.printed.read_text()
        time.sleep(0.1)
    job, cell = next(iter(started.items()))
    subprocess.run(["scancel", job], env=cluster, check=True)
    others = set(launcher.jobs().values()) - {cell}
    while not all((other / "results.json").exists() for other in others):
        assert launcher.process.poll() is None, launcher.printed.read_text()
        time.sleep(0.1)
    assert launcher.wait() == 1
    assert "svdexp: 1 of 4 cells failed, see failed.json in their folders" in launcher.printed.read_text()
    assert f"job {job} ended without a result, in state CANCELLED" in (cell / "failed.json").read_text()
    assert len(others) == 3
    assert not (cell / "results.json").exists()

    again = Launcher(tmp_path, words, cluster)
    assert again.wait() == 0, again.printed.read_text()
    assert list(again.jobs().values()) == [cell], "finished cells were submitted again"
    assert not (cell / "failed.json").exists()
    results = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/results.json")]
    assert len(results) == 4
    assert all(tiny_job[0] in result["command"].split() for result in results)
