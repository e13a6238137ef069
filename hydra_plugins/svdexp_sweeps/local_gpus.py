"""hydra/launcher=local_gpus: a queue over the GPUs of this machine, each cell in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.svdexp_sweeps.grid import error_of
from hydra_plugins.svdexp_sweeps.launching import Cell, launch_unfinished, log
from svdexp.cells import FAILED, HeldError, said_by
from svdexp.cells.guard import BUSY
from svdexp.runtime.errors import UserError, require, require_positive


class LocalGpus(Launcher):
    """Keeps every slot busy with exactly one cell: a slot is a GPU, or one of `slots` CPU workers."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots
        self.settings: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.settings = {"hydra_context": hydra_context, "task_function": task_function, "config": config}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The outcomes of all cells, when the last has ended."""
        return launch_unfinished(self.settings, job_overrides, initial_job_idx, self.work_off)

    def work_off(self, cells: list[Cell]) -> list[JobReturn]:
        """The outcomes of cells that wait in one queue for free slots."""
        slots = find_slots(self.slots)
        free: SimpleQueue[Slot] = SimpleQueue()
        for slot in slots:
            free.put(slot)
        pool = ThreadPoolExecutor(len(slots))
        try:
            return list(pool.map(partial(compute, free, command(self.settings["config"])), cells))
        finally:  # after Ctrl-C, which the cells get as well, no other cell starts
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Slot:
    """A device by name, and the environment variables that confine a process to it."""

    name: str
    environment: dict[str, str]


def find_slots(count: int | None) -> list[Slot]:
    """`count` CPU workers, or by default every GPU that this process sees.

    Raises:
        UserError: there is none.
    """
    if count is not None:
        require(type(count) is int, f"hydra.launcher.slots must be a number of CPU workers, not {count}")
        require_positive("hydra.launcher.slots", count)
        share = max(1, len(os.sched_getaffinity(0)) // count)
        threads = os.environ.get("OMP_NUM_THREADS", str(share))
        return [Slot(f"CPU {i}", {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}) for i in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch  # Hydra imports this module at every start

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = [word for word in visible.split(",") if word]
    if not devices:
        raise UserError("hydra/launcher=local_gpus sees no GPU here; hydra.launcher.slots=N starts N CPU workers")
    return [Slot(f"GPU {device}", {"CUDA_VISIBLE_DEVICES": device}) for device in devices]


def command(config: DictConfig) -> list[str]:
    """What starts a single run of the program that this process runs, with the same configuration files."""
    program = sys.modules["__main__"].__spec__
    assert program is not None, "started as python -m MODULE"
    sources = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
    options = [word for path in sources for word in ("--config-dir", path)]
    options += ["--config-name", config.hydra.job.config_name]
    return [sys.executable, "-m", program.name, *options, *config.hydra.overrides.hydra, "hydra.mode=RUN"]


def compute(free: "SimpleQueue[Slot]", start: Sequence[str], cell: Cell) -> JobReturn:
    """Compute one cell in the next free slot."""
    slot = free.get()
    try:
        log.info("%s starts %s", slot.name, cell.folder)
        since = time.monotonic()
        outcome = run(start, cell, slot)
        state = "failed" if error_of(outcome) else "finished"
        log.info("%s %s after %.0f s: %s", slot.name, state, time.monotonic() - since, cell.folder)
        return outcome
    finally:
        free.put(slot)


def run(start: Sequence[str], cell: Cell, slot: Slot) -> JobReturn:
    """Compute one cell in a slot, as a single run with the cell's folder; what it prints goes to console.log there."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / FAILED).unlink(missing_ok=True)
    folder = str(cell.folder).replace("'", "\\'")
    with (cell.folder / "console.log").open("a") as console:
        code = subprocess.run(
            [*start, *cell.overrides, f"hydra.run.dir='{folder}'"],
            env=os.environ | slot.environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        ).returncode
    if code == 0:
        return cell.outcome()
    if code == BUSY:
        return cell.outcome(HeldError(str(cell.folder)))
    if (cell.folder / FAILED).is_file():
        return cell.outcome(UserError(said_by(cell.folder)))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return cell.lost(f"its process {how}; see {cell.folder / 'console.log'}")
