"""What the commands share: where conf/ is, and how a mistake becomes one line on standard error and exit code 1."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from svdexp.errors import UserError

log = logging.getLogger("svdexp")


def config_dir() -> str:
    """conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def guarded(job: Callable[[Path], object]) -> None:
    """Carry out one of Hydra's jobs in its run directory.

    Raises:
        UserError: in a sweep, which goes on with its other runs; Hydra raises the first error at the end.
    """
    try:
        job(Path(HydraConfig.get().runtime.output_dir))
    except UserError as error:
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        # A single run ends here, before Hydra adds lines of its own.
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


def cli(main: Callable[[], None], schema: type) -> int:
    """Run `main`, whose configuration is a `schema`; mistakes become one line on standard error and exit code 1.

    SVDEXP_DEBUG=1 in the environment shows the traceback instead.
    """
    ConfigStore.instance().store(name="schema", node=schema)
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
