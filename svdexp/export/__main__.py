"""Command line: `python -m svdexp.export path=RUN to=FOLDER` writes a checkpoint that others load without svdexp."""

import svdexp.runtime.interruption  # noqa: F401

# isort: split
import sys

import hydra
from omegaconf import DictConfig

from svdexp.cells.guard import alone, cli, config_dir
from svdexp.runtime.imports import imports
from svdexp.schema import ExportConfig, validate_export


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="export")
def main(cfg: DictConfig) -> None:
    """One export of the composed configuration."""

    alone(lambda: job(validate_export(cfg)))


def job(config: ExportConfig) -> None:
    """The export."""
    with imports():  # after validation, because importing torch takes seconds
        from svdexp.export.publish import publish

    publish(config)


if __name__ == "__main__":
    sys.exit(cli(main, ExportConfig))
