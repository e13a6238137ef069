"""Command line: `python -m svdexp [key=value …]`, with all that Hydra offers (--help, --cfg job, --multirun)."""

import svdexp.interruption  # noqa: F401

# isort: split
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.command import cli, config_dir, guarded, objective
from svdexp.schema import Config, validate


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run of the composed configuration; returns its objective to the sweeper."""
    guarded(cfg, validate, job)
    return objective(cfg)


def job(config: Config, run_dir: Path) -> None:
    """The run, or its preview."""
    from svdexp.experiment import preview, run  # after validation: importing torch takes seconds

    if config.dry_run:
        preview(config, run_dir)
    else:
        run(config, run_dir)


if __name__ == "__main__":
    sys.exit(cli(main, Config))
