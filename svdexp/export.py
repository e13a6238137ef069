"""Command line: `python -m svdexp.export path=RUN to=FOLDER` writes a checkpoint that others load without svdexp."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.command import cli, config_dir, guarded
from svdexp.schema import ExportConfig, validate_export


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="export")
def main(cfg: DictConfig) -> None:
    """One export of the composed configuration."""

    def job(_: Path) -> None:
        config = validate_export(cfg)
        from svdexp.publish import publish  # after validation: importing torch takes seconds

        publish(config)

    guarded(job)


if __name__ == "__main__":
    sys.exit(cli(main, ExportConfig))
