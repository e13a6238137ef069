"""What the commands share: where conf/ is, and how a mistake becomes one line on standard error and exit code 1."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svdexp.errors import UserError
from svdexp.schema import Config, EvaluateConfig
from svdexp.sweeps import RESULTS, HeldError, OccupiedError, carry_out, note_failure, register_names

log = logging.getLogger("svdexp")

KNOWN = (UserError, HydraException, OmegaConfBaseException)
BUSY = os.EX_TEMPFAIL  # exit code of a single run whose folder another process holds

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)


def config_dir() -> str:
    """conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def guarded(
    cfg: DictConfig, check: Callable[[DictConfig], AnyConfig], work: Callable[[AnyConfig, Path], object]
) -> None:
    """One of Hydra's jobs in its run directory: check the configuration, then carry out the cell.

    Raises:
        UserError: in a sweep, for whatever went wrong; the sweep goes on with its other cells.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    dry = bool(OmegaConf.select(cfg, "dry_run"))
    try:
        config = check(cfg)
        if dry:
            work(config, folder)
        else:
            carry_out(cfg, config, folder, work)
        return
    except Exception as error:
        if not dry and not sibling() and not isinstance(error, OccupiedError):
            note_failure(folder, error, one_sentence(error))
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        # A single run ends here, before Hydra adds lines of its own.
        if HydraConfig.get().mode is RunMode.RUN:
            if not isinstance(error, UserError):
                raise
            end(error)
        log.error("%s", one_sentence(error), exc_info=None if isinstance(error, UserError) else error)
        failure = error if isinstance(error, HeldError) else UserError(one_sentence(error))
    # Raised here, not above: the error's traceback would keep the model's tensors alive as long as the sweep lasts.
    raise failure.with_traceback(None)


def objective(cfg: DictConfig) -> float | None:
    """The figure of the finished run that the configuration names, for a sweeper that searches."""
    key = cfg.objective
    if key is None or cfg.dry_run or sibling():
        return None
    results = json.loads((Path(HydraConfig.get().runtime.output_dir) / RESULTS).read_text())
    if not isinstance(results.get(key), int | float):
        raise UserError(f"objective={key} is no figure in the run's results.json")
    return float(results[key])


def sibling() -> bool:
    """Whether another of the processes that share this run is the one that writes and speaks."""
    return os.environ.get("RANK", "0") != "0"


def alone(job: Callable[[], object]) -> None:
    """Do what is no cell. A mistake ends the program here, before Hydra adds lines of its own."""
    try:
        job()
    except UserError as error:
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        end(error)


def end(error: UserError) -> NoReturn:
    """End the program with the error's sentence."""
    print(f"svdexp: {one_sentence(error)}", file=sys.stderr)
    sys.exit(BUSY if isinstance(error, HeldError) else 1)


def one_sentence(error: Exception) -> str:
    """The error's words on one line; Hydra's name the override, and what OmegaConf says of its value follows."""
    words = str(error) if isinstance(error, KNOWN) else f"{type(error).__name__}: {error}"
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        words += f": {str(error.__cause__).splitlines()[0]}"
    return " ".join(words.split())


def cli(main: Callable[[], object], schema: type) -> int:
    """Run `main`, whose configuration is a `schema`; mistakes become one line on standard error and exit code 1.

    SVDEXP_DEBUG=1 in the environment shows the traceback instead.
    """
    ConfigStore.instance().store(name="schema", node=schema)
    register_names()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach us; Hydra would print its own excerpt
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sibling():
        sys.argv += ["hydra.run.dir=.", "hydra/job_logging=disabled"]
    try:
        main()
    except KNOWN as error:
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        print(f"svdexp: {one_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("svdexp: interrupted; finished stages are in the cache and will be reused", file=sys.stderr)
        return 130
    return 0
