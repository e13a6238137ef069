"""Command line: `python -m svdexp.evaluate path=MODEL [eval=full …]` measures a model as it is, without compressing."""

import svdexp.runtime.interruption  # noqa: F401

# isort: split
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.cells.guard import cli, config_dir, guarded
from svdexp.runtime.imports import imports
from svdexp.schema import EvaluateConfig, validate_evaluation


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One evaluation of the composed configuration."""

    guarded(cfg, validate_evaluation, job)


def job(config: EvaluateConfig, run_dir: Path) -> None:
    """The evaluation."""
    with imports():  # after validation, because importing torch takes seconds
        from svdexp.runs.evaluation import run

    run(config, run_dir)


if __name__ == "__main__":
    sys.exit(cli(main, EvaluateConfig))
