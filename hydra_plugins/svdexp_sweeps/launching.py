"""What launchers share that give each cell a process of its own."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from svdexp.cells import UNTRACKED, is_finished, note_failure
from svdexp.cells.traces import is_dry
from svdexp.runtime.errors import UserError
from svdexp.schema import Config, EvaluateConfig, validate, validate_evaluation

log = logging.getLogger("svdexp.cells")


@dataclass
class Cell:
    """One cell of a sweep: its place among the job's, its overrides, and its folder."""

    number: int
    overrides: list[str]
    folder: Path

    def outcome(self, error: Exception | None = None) -> JobReturn:
        """What Hydra is told of it."""
        status = JobStatus.FAILED if error else JobStatus.COMPLETED
        return JobReturn(overrides=self.overrides, working_dir=str(self.folder), status=status, _return_value=error)

    def lost(self, reason: str) -> JobReturn:
        """The outcome of a cell whose process ended without a word, which is noted in its folder."""
        error = UserError(reason)
        note_failure(self.folder, error, reason)
        return self.outcome(error)


def launch_unfinished(
    setup: dict[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
    launch: Callable[[list[Cell]], list[JobReturn]],
) -> Sequence[JobReturn]:
    """Launch the cells without finished results; a dry run prints all of them from here.

    Args:
        setup: what Hydra set the launcher up with.
        job_overrides: of each cell.
        first: the number of the first.
        launch: gets the cells to launch and gives their outcomes, in order.
    """
    config: DictConfig = setup["config"]
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if is_dry(config):
        here = BasicLauncher()
        here.setup(**setup)
        return here.launch(job_overrides, first)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    cells, waiting = {}, []
    for number, overrides in enumerate(job_overrides, first):
        cells[number], done = look_at(setup["hydra_context"], config, list(overrides), number)
        if done:
            log.info("finished already: %s", cells[number].folder)
        else:
            waiting.append(cells[number])
    outcomes = {number: cell.outcome() for number, cell in cells.items()}
    if waiting:
        outcomes |= {cell.number: outcome for cell, outcome in zip(waiting, launch(waiting), strict=True)}
    return list(outcomes.values())


def look_at(context: HydraContext, config: DictConfig, overrides: list[str], number: int) -> tuple[Cell, bool]:
    """The cell of these overrides, and whether it is finished."""
    cell, composed = compose(context, config, overrides, number)
    try:
        return cell, finished(checked(composed), cell.folder)
    except UserError:
        return cell, False  # its own process will say what is wrong


def compose(context: HydraContext, config: DictConfig, overrides: list[str], number: int) -> tuple[Cell, DictConfig]:
    """The cell of these overrides, and its configuration with Hydra's part."""
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed.hydra.job):
        composed.hydra.job.id = composed.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        folder = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir).absolute()
    finally:
        HydraConfig.instance().cfg = before
        OmegaConf.set_readonly(composed.hydra, False)  # as it was composed
    return Cell(number, overrides, folder), composed


def call(composed: DictConfig, name: str) -> str:
    """Let a composed cell's folder be called `name`; the override that says so."""
    override = f"hydra.sweep.subdir='{name}'"
    composed.hydra.sweep.subdir = name
    composed.hydra.overrides.hydra.append(override)
    return override


def checked(composed: DictConfig) -> Config | EvaluateConfig:
    """The configuration of a cell, checked.

    Raises:
        UserError: a value is missing, out of range, or contradicts another.
    """
    task = copy.deepcopy(composed)
    with open_dict(task):
        del task["hydra"]
    return validate(task) if OmegaConf.get_type(task) is Config else validate_evaluation(task)


def finished(config: Config | EvaluateConfig, folder: Path) -> bool:
    """Whether the cell has its results, and its tracker was told of them.

    Raises:
        UserError: as `is_finished`.
    """
    return is_finished(config, folder) and not (folder / UNTRACKED).exists()
