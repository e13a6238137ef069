"""Command line: `python -m svdexp [key=value …]`, with all that Hydra offers (--help, --cfg job, --multirun)."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from svdexp.errors import UserError
from svdexp.schema import Config, validate

log = logging.getLogger(__name__)


def config_dir() -> str:
    """conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def main(cfg: DictConfig) -> None:
    """One run of the composed configuration."""
    try:
        config = validate(cfg)
        from svdexp.experiment import preview, run  # after validation: importing torch takes seconds

        if config.dry_run:
            preview(config)
        else:
            run(config, Path(HydraConfig.get().runtime.output_dir))
    except UserError as error:
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        # A single run ends here, before Hydra adds lines of its own. A sweep goes on with its other runs;
        # Hydra raises the first error at the end.
        if HydraConfig.get().mode is RunMode.RUN:
            print(f"svdexp: {one_sentence(error)}", file=sys.stderr)
            sys.exit(1)
        log.error("%s", one_sentence(error))
        raise


def one_sentence(error: Exception) -> str:
    """The error's words on one line; Hydra's name the override, and what OmegaConf says of its value follows."""
    words = str(error)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        words += f": {str(error.__cause__).splitlines()[0]}"
    return " ".join(words.split())


def cli() -> int:
    """Run `main`; mistakes become one line on standard error and exit code 1.

    SVDEXP_DEBUG=1 in the environment shows the traceback instead.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach us; Hydra would print its own excerpt
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        print(f"svdexp: {one_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("svdexp: interrupted; finished stages are in the cache and will be reused", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
