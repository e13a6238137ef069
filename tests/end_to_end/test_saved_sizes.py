"""save=elastic from the command line: the checkpoint of any run of plain factors, and all lower ratios beside it."""

from pathlib import Path

import torch

import svdexp
from tests.end_to_end.conftest import Svdexp, read


def test_one_run_serves_every_lower_ratio(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    """Its figures are those of save=checkpoint, which finds the cell finished; the other way round it is not."""
    words = [*tiny_job, "storage=factors", "method=svd_llm", "eval.efficiency=null", "precision=float32"]
    for folder, save, ratio in (("one", "elastic", 0.7), ("low", "checkpoint", 0.4)):
        done = svdexp_command(*words, f"save={save}", f"ratio={ratio}", f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "one")["reload_max_logit_difference"] == 0
    assert read(tmp_path / "one")["storage"] == "factors"
    sliced, direct = svdexp.load(tmp_path / "one", ratio=0.4)[0], svdexp.load(tmp_path / "low")[0]
    assert all(torch.equal(tensor, direct.state_dict()[name]) for name, tensor in sliced.state_dict().items())
    again = [svdexp_command(*words, f"save={save}", "ratio=0.7", "hydra.run.dir=one", "dry_run=true") for save in SAVES]
    assert ["finished: " in run.stdout for run in again] == [True, True]
    low = svdexp_command(*words, "save=elastic", "ratio=0.4", "hydra.run.dir=low", "dry_run=true")
    assert "not finished" in low.stdout


SAVES = ("checkpoint", "elastic")
