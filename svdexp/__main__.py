"""Command line: `python -m svdexp [key=value …]`, with all that Hydra offers (--help, --cfg job, --multirun)."""

import svdexp.runtime.interruption  # noqa: F401

# isort: split
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.cells import UNTRACKED, lacks_card
from svdexp.cells.guard import cli, config_dir, guarded, objective, sibling
from svdexp.cells.traces import is_dry
from svdexp.runtime.imports import imports
from svdexp.schema import Config, validate


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def main(cfg: DictConfig) -> object:
    """One run of the composed configuration; tells the sweeper its objective, or a dry run's estimate."""
    estimate = guarded(cfg, validate, job, tell_tracker)
    return estimate if is_dry(cfg) else objective(cfg)


def job(config: Config, run_dir: Path) -> object:
    """The run, or its preview, or what a finished run lacks; a preview's estimate."""
    # after validation: importing torch takes seconds
    if is_dry(config):
        with imports():
            from svdexp.runs.preview import preview

        return preview(config, run_dir)
    with imports():
        from svdexp.export.publish import add_card
        from svdexp.runs.compression import run

    if lacks_card(config, run_dir):
        add_card(config, run_dir)
    else:
        run(config, run_dir)
    return None


def tell_tracker(config: Config, run_dir: Path) -> None:
    """Let the tracker have the figures of a finished run, if it was not told."""
    if (run_dir / UNTRACKED).is_file() and not sibling():
        from svdexp.method import build  # importing torch takes seconds
        from svdexp.tracking import complete

        complete(build(config.tracker, "tracker"), config, run_dir)


if __name__ == "__main__":
    sys.exit(cli(main, Config))
