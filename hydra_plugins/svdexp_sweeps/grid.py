"""hydra/sweeper=grid: Hydra's own grid, which ends with one sentence on what failed."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from svdexp.cells import HeldError, wait_for
from svdexp.cells.traces import as_before, is_dry
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.masking import masked_config
from svdexp.schema import Save

log = logging.getLogger("svdexp.cells")


class Grid(BasicSweeper):
    """Every combination, one cell each; cells that other launchers were at are looked at again at the end."""

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out all cells.

        Raises:
            UserError: there are none, or some failed, after all were tried.
        """
        assert self.launcher is not None
        assert self.config is not None
        self.config = masked_config(self.config)  # what becomes multirun.yaml; the launcher has its own
        launch = self.launcher.launch
        outcomes: list[JobReturn] = []

        def launch_all(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            outcomes.extend(in_the_end(launch, job_overrides, initial_job_idx))
            return []  # of what it is given, Hydra's sweeper would raise the first failure

        self.launcher.launch = launch_all  # type: ignore[method-assign]
        dry = is_dry(self.config)
        with as_before(Path(self.config.hydra.sweep.dir, "multirun.yaml")) if dry else nullcontext():
            super().sweep(arguments)
        if dry:
            sum_up(outcomes)
        failures = [outcome for outcome in outcomes if outcome.status is JobStatus.FAILED]
        if failures:
            first = failures[0]
            raise UserError(
                f"{len(failures)} of {len(outcomes)} cells failed, see failed.json in their folders; "
                f"the first is {folder_of(first)}: {error_of(first)}"
            )
        return outcomes

    def _parse_config(self) -> list[str]:
        """The values that the configuration sweeps over, before those of the command line, which replace them."""
        params: list[str] = super()._parse_config()
        if OmegaConf.select(self.config, "save") is not Save.auto:
            return params
        log.info("cells leave their figures and no checkpoints, unless save=checkpoint asks for them")
        return ["save=none", *params]

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The cells, in batches.

        Raises:
            UserError: there are none, because a key has no value.
        """
        for override in overrides:
            values = override.sweep_string_iterator() if override.is_discrete_sweep() else ["one"]
            require(any(True for _ in values), f"{override.input_line} gives no value, so the sweep has no cells")
        return BasicSweeper.split_arguments(overrides, max_batch_size)


def sum_up(outcomes: Sequence[JobReturn]) -> None:
    """Print what all cells of a dry run together would take."""
    from svdexp.estimate.summary import names_of, summary  # imports torch

    told = [outcome for outcome in outcomes if outcome.status is JobStatus.COMPLETED]
    names = names_of([list(outcome.overrides or []) for outcome in told])
    if len(told) > 1:
        print(summary({name: outcome.return_value for name, outcome in zip(names, told, strict=True)}))


def in_the_end(launch: Any, cells: Sequence[Sequence[str]], number: int) -> list[JobReturn]:
    """The outcomes of all cells; those in other processes' hands are launched again when they are free."""
    outcomes = list(launch(cells, initial_job_idx=number))
    while held := [index for index, outcome in enumerate(outcomes) if isinstance(error_of(outcome), HeldError)]:
        for index in held:
            wait_for(error_of(outcomes[index]).folder)
        again = launch([cells[index] for index in held], initial_job_idx=number)
        for index, outcome in zip(held, again, strict=True):
            outcomes[index] = outcome
    return outcomes


def error_of(outcome: JobReturn) -> Any:
    """What a failed job raised; `return_value` would raise it again, and print."""
    return outcome._return_value if outcome.status is JobStatus.FAILED else None


def folder_of(outcome: JobReturn) -> str:
    """Where a job ran: Hydra says it in the job's configuration, launching.py beside it."""
    return str(outcome.hydra_cfg.hydra.runtime.output_dir if outcome.hydra_cfg else outcome.working_dir)
