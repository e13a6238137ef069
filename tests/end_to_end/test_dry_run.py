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
    assert "│ start " in result.stdout
    assert "│ load " not in result.stdout, "there are no weights"
    assert "fits: every stage stays below 90% of the" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


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


def test_a_preset_needs_no_network_and_no_device(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny_job if not word.startswith("model.")]
    result = svdexp_command(
        "-m", *words, "model=llama2-7b", "ratio=0.5,0.6", "dry_run=true", "dry_run.device=rtx4090", "precision=auto"
    )
    assert result.returncode == 0, result.stderr
    assert "meta-llama/Llama-2-7b-hf cannot be had here; the estimate is of its published shape" in result.stdout
    assert "bfloat16 on rtx4090" in result.stdout
    assert "│ start " not in result.stdout
    assert "not counted: starting Python, reading and writing files" in result.stdout
    assert "DOES NOT FIT: " in result.stdout
    last = result.stdout[result.stdout.index("Estimate of the sweep") :]
    for word in ("ratio=0.5", "ratio=0.6", "all 2 cells", "NO"):
        assert word in last
    assert not list(tmp_path.iterdir())
