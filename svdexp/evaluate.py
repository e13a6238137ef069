"""Command line: `python -m svdexp.evaluate path=MODEL [eval=full …]` measures a model as it is, without compressing."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.command import cli, config_dir, guarded
from svdexp.schema import EvaluateConfig, validate_evaluation


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One evaluation of the composed configuration."""

    def job(run_dir: Path) -> None:
        config = validate_evaluation(cfg)
        from svdexp.standalone import run  # after validation: importing torch takes seconds

        run(config, run_dir)

    guarded(job)


if __name__ == "__main__":
    sys.exit(cli(main, EvaluateConfig))
