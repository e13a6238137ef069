"""One cell in its folder: computed once, by one process at a time, and what failed leaves a note.

results.json is written last, so a folder that has it is finished. `.lock` is held while a cell is computed; the
operating system frees it when the process ends, however it ends.
"""

import json
import logging
import math
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from svdexp.record.results import CELL, RELOAD, RESULTS
from svdexp.runtime.disk import UnwritableError, write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.masking import masked_config, masked_words
from svdexp.runtime.reading import read_object
from svdexp.schema import Config, EvaluateConfig, Save

log = logging.getLogger(__name__)

FAILED, LOCK, CARD = "failed.json", ".lock", "README.md"
UNTRACKED = "untracked.json"  # there as long as the tracker has not been told of the results

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)
Decision = TypeVar("Decision")


class OccupiedError(UserError):
    """The folder belongs to something else; nothing in it may be changed."""


class HeldError(OccupiedError):
    """Another process computes this cell now."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self.folder = Path(folder)

    def __str__(self) -> str:
        return f"another process is at work in {self.folder}; start the command again when it has ended"


def carry_out(
    cfg: DictConfig,
    config: AnyConfig,
    folder: Path,
    work: Callable[[AnyConfig, Path], object],
    complete: Callable[[AnyConfig, Path], object] | None = None,
) -> None:
    """Do the work of a cell in its folder, unless it is finished.

    Args:
        cfg: the composed configuration, kept in .hydra/.
        config: the same, checked.
        folder: where results.json is left.
        work: leaves it there.
        complete: does what an interrupted process left undone after that.

    Raises:
        HeldError: another process is at it.
        OccupiedError: the folder holds results of something else.
        UserError: of `work`, or a local file is not there.
    """
    with ExitStack() as stack:
        found = agreed(lambda: enter(stack, cfg, config, folder))
        if isinstance(found, UserError):
            raise found
        if found:
            log.info("finished already: %s", folder / RESULTS)
            if complete:
                complete(config, folder)
        else:
            work(config, folder)


def enter(stack: ExitStack, cfg: DictConfig, config: Config | EvaluateConfig, folder: Path) -> bool | UserError:
    """Hold the folder as long as `stack` lasts, and prepare it unless it is finished: whether it is, or why not."""
    try:
        stack.enter_context(held(folder))
        if is_finished(config, folder):
            return True
        # Hydra itself would have written these before anything could be checked (hydra.output_subdir)
        for name, part in configurations(cfg).items():
            write_atomically(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part))
    except UserError as error:
        return error
    (folder / FAILED).unlink(missing_ok=True)
    return False


def agreed(decide: Callable[[], Decision]) -> Decision:
    """What the main one of the processes that share this run decides; its siblings neither lock nor look."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    from svdexp.runtime.processes import Processes  # imports torch

    processes = Processes()
    return processes.agree(decide()) if processes.main else processes.agree(cast(Decision, None))


def in_sweep() -> bool:
    """Whether this is a cell of a sweep that this process, or the one that launched it, goes on with."""
    return HydraConfig.initialized() and HydraConfig.get().mode is not RunMode.RUN


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's within this context.

    Raises:
        HeldError: it is another's.
        UnwritableError: it cannot be locked, for instance because the disk is full.
    """
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise HeldError(str(folder)) from None
    except OSError as error:
        raise UnwritableError(folder, error) from error
    with lock:
        yield


def wait_for(folder: Path) -> None:
    """Return when no process holds the folder."""
    with FileLock(folder / LOCK):
        pass


def configurations(cfg: DictConfig) -> dict[str, Any]:
    """What Hydra keeps of a job, by the names of its files: tokens are masked, the model's name is what it comes to."""
    hydra: Any = HydraConfig.instance().cfg
    overrides = masked_words(HydraConfig.get().overrides.task)
    cfg = cfg.copy()
    cfg.model.name = cfg.model.name
    return {"config": cfg, "hydra": masked_config(hydra), "overrides": OmegaConf.create(overrides)}


def is_finished(config: Config | EvaluateConfig, folder: Path) -> bool:
    """Whether the folder has the results that the configuration asks for and, if it wants them, checkpoint and card.

    Raises:
        OccupiedError: it has results of something else.
        UserError: a local file of the configuration is not there.
    """
    if not (folder / RESULTS).exists():
        return False
    try:
        results = read_object(folder / RESULTS)
    except UserError:
        results = {}
    from svdexp.cells.identity import identity_of  # imports torch

    if CELL.get(results) != identity_of(config):
        raise OccupiedError(
            f"{folder} holds results of another configuration, or of other contents of its files; "
            "choose another hydra.run.dir (in a sweep hydra.sweep.dir), or delete that folder"
        )
    difference = RELOAD.get(results)  # there is one where there is a checkpoint
    if difference is not None and math.isnan(difference):
        return False
    wanted, checkpoint = config.save if isinstance(config, Config) else Save.none, folder / "checkpoint"
    if wanted is not Save.none and not (checkpoint.is_dir() and is_whole(checkpoint, wanted is Save.elastic)):
        return False
    return wanted is not Save.hf or (checkpoint / CARD).is_file()


def lacks_card(config: Config, folder: Path) -> bool:
    """Whether the folder has all that save=hf asks for but the card, because it was left with save=checkpoint."""
    if config.save is not Save.hf or is_finished(config, folder):
        return False
    return is_finished(replace(config, save=Save.checkpoint), folder)


def is_whole(checkpoint: Path, elastic: bool) -> bool:
    """Whether all files of a checkpoint are there, and none with weights is cut short; else a warning says which.

    An `elastic` one must also have what lower ratios take.
    """
    from svdexp.checkpoints.whole import has_lower_ratios, require_whole  # imports torch

    try:
        require_whole(checkpoint)
    except UserError as error:
        log.warning("not finished: %s", error)
        return False
    return not elastic or has_lower_ratios(checkpoint)


def note_failure(folder: Path, error: Exception, sentence: str) -> None:
    """Leave failed.json; a traceback only of what is no mistake of the user's."""
    note = {"error": sentence}
    if not isinstance(error, UserError):
        note |= {"type": type(error).__name__, "traceback": "".join(traceback.format_exception(error))}
    write_atomically(folder / FAILED, json.dumps(note, indent=1))


def said_by(folder: Path) -> str:
    """What a failed cell's note says."""
    try:
        return str(read_object(folder / FAILED)["error"])
    except (UserError, KeyError):
        return f"{folder / FAILED} cannot be read"


def state_of(config: Config | EvaluateConfig, folder: Path) -> str:
    """Where a cell stands, in one line; nothing is changed."""
    if not folder.is_dir():
        return "not started"
    try:
        with held(folder):
            if is_finished(config, folder):
                return f"finished: {folder / RESULTS}"
    except OccupiedError as error:
        return str(error)
    if (folder / FAILED).is_file():
        return f"failed: {said_by(folder)}"
    return "started, not finished"
