"""dry_run=true prints the estimate and stops: no weights, no results."""

import shutil
from pathlib import Path

from tests.end_to_end.conftest import Svdexp


def test_a_dry_run_needs_the_config_alone(
    svdexp_command: Svdexp, tiny_job: list[str], model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(model_folder / "config.json", tmp_path / "bare")
    result = svdexp_command(*tiny_job, "model.path=./bare", "method=svd_llm_update", "dry_run=true")
    assert result.returncode == 0, result.stderr
    for word in ("Estimate", "calibration", "factorisation", "update", "save", "total time, peak memory"):
        assert word in result.stdout
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.rglob("ranks.json"))


def test_mistakes_are_found_by_a_dry_run(svdexp_command: Svdexp, tiny_job: list[str]) -> None:
    result = svdexp_command(*tiny_job, "+targets.ranks={nothing:3}", "dry_run=true")
    assert result.returncode == 1
    assert "svdexp: targets.ranks" in result.stderr
    assert "Estimate" not in result.stdout


def test_a_run_logs_its_estimate_first(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    result = svdexp_command(*tiny_job, "eval.windows=null", "save=none")
    assert result.returncode == 0, result.stderr
    (log,) = tmp_path.rglob("svdexp.log")
    assert "Estimate" in log.read_text()
    assert "total time, peak memory" in log.read_text()
