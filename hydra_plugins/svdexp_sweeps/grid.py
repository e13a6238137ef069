"""hydra/sweeper=grid: Hydra's own grid, checked as a whole before it starts, with one table at its end."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hydra_plugins.svdexp_sweeps.launching import call, checked, compose, finished
from hydra_plugins.svdexp_sweeps.once import OnceComposed
from svdexp.cells import HeldError, wait_for
from svdexp.cells.guard import refuse_two_sizes
from svdexp.cells.mistakes import as_mistake, one_sentence
from svdexp.cells.naming import differences, digits_of, folder_for
from svdexp.cells.traces import as_before, is_dry
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.invocation import same_again
from svdexp.runtime.masking import masked_config, masked_words
from svdexp.schema import Save

log = logging.getLogger("svdexp.cells")


@dataclass
class Look:
    """A cell before the sweep starts: what tells it apart, whether it is finished, and what is wrong with it."""

    apart: dict[str, str]
    finished: bool = False
    mistake: str = ""
    extra: list[str] = field(default_factory=list)  # overrides that it gets


class Grid(BasicSweeper):
    """Every combination, one cell each; cells that other launchers were at are looked at again at the end."""

    looks: Sequence[Look] = ()

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out all cells.

        Raises:
            UserError: there are none, one has a mistake, in which case none is started, or some failed, after all were
                tried.
            KeyboardInterrupt: says how to go on.
        """
        assert self.launcher is not None
        assert self.config is not None
        assert self.hydra_context is not None
        self.unmasked = self.config
        self.config = masked_config(self.config)  # what becomes multirun.yaml; the launcher has its own
        self.hydra_context.config_loader = self.loader = OnceComposed(self.hydra_context.config_loader)
        launch = self.launcher.launch
        outcomes: list[JobReturn] = []

        def launch_all(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            outcomes.extend(in_the_end(launch, job_overrides, initial_job_idx))
            return []  # of what it is given, Hydra's sweeper would raise the first failure

        self.launcher.launch = launch_all  # type: ignore[method-assign]
        dry, place = is_dry(self.config), Path(self.config.hydra.sweep.dir).absolute()
        try:
            with as_before(place / "multirun.yaml") if dry else nullcontext():
                super().sweep(arguments)
        except KeyboardInterrupt as interrupt:
            again = same_again(masked_words(sys.argv[1:]), place, "hydra.sweep.dir")
            raise KeyboardInterrupt(*interrupt.args, f"the sweep goes on with\n  {again}") from None
        if dry:
            sum_up(outcomes)
        else:
            self.show(outcomes, place)
        failures = [outcome for outcome in outcomes if outcome.status is JobStatus.FAILED]
        if failures:
            first = failures[0]
            raise UserError(
                f"{len(failures)} of {len(outcomes)} cells failed, see failed.json in their folders; "
                f"the first is {folder_of(first)}: {error_of(first)}"
            )
        return outcomes

    def show(self, outcomes: Sequence[JobReturn], place: Path) -> None:
        """Print the table of the cells."""
        from svdexp.tracking.sweeps import Line, show_sweep  # imports torch

        def state(look: Look, outcome: JobReturn) -> str:
            if outcome.status is JobStatus.FAILED:
                return f"failed: {error_of(outcome)}"
            return "finished before" if look.finished else "done"

        found = zip(self.looks, outcomes, strict=True)
        show_sweep([Line(look.apart, Path(folder_of(done)), state(look, done)) for look, done in found], place)

    def _parse_config(self) -> list[str]:
        """The values that the configuration sweeps over, before those of the command line, which replace them."""
        params: list[str] = super()._parse_config()
        return ["save=none", *params] if self.leaves_no_checkpoints() else params

    def leaves_no_checkpoints(self) -> bool:
        """Whether nothing says what cells save, or that it be sent."""
        assert self.config is not None
        sent = OmegaConf.select(self.config, "tracker.checkpoint")
        return OmegaConf.select(self.config, "save") is Save.auto and not sent

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The cells, in batches, each with a folder's name that says what tells it apart.

        Raises:
            UserError: there are none, because a key has no value, or a cell has a mistake.
        """
        for override in overrides:
            values = override.sweep_string_iterator() if override.is_discrete_sweep() else ["one"]
            require(any(True for _ in values), f"{override.input_line} gives no value, so the sweep has no cells")
        batches: list[list[list[str]]] = BasicSweeper.split_arguments(overrides, max_batch_size)
        cells = list(chain.from_iterable(batches))
        log.info("%d cells; all are checked before the first one starts", len(cells))
        if self.leaves_no_checkpoints():
            log.info("cells leave figures and no checkpoints, unless save=checkpoint asks for them")
        self.looks = [
            self.look(apart, words, number)
            for number, (apart, words) in enumerate(zip(differences(cells), cells, strict=True))
        ]
        refuse_mistakes(self.looks)
        for words, look in zip(cells, self.looks, strict=True):
            words += look.extra
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """All cells were looked at when the batches were made."""

    def look(self, apart: dict[str, str], words: list[str], number: int) -> Look:
        """Compose and check a cell; its launcher will be given what was composed."""
        from svdexp.runs.beforehand import check_cell  # imports torch

        assert self.hydra_context is not None
        look = Look(apart)
        try:
            refuse_two_sizes(words)
            cell, composed = compose(self.hydra_context, self.unmasked, words, number)
            subdir = OmegaConf.to_container(composed.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index,call-overload]
            if apart and str(subdir).startswith("${cell:"):  # nobody chose another
                name = folder_for(apart, digits_of(composed), cell.folder.parent)
                cell.folder = cell.folder.with_name(name)
                look.extra = [call(composed, name)]
            config = checked(composed)
            if not is_dry(self.config):  # which needs no model, and says itself what is wrong
                check_cell(config)
            look.finished = finished(config, cell.folder)
            self.loader.keep([*words, *look.extra], composed)
        except (UserError, HydraException) as error:
            look.mistake = one_sentence(as_mistake(error))
        return look


def refuse_mistakes(looks: Sequence[Look]) -> None:
    """Raise UserError where a cell has a mistake."""
    wrong = [look for look in looks if look.mistake]
    if wrong:
        cell = ", ".join(f"{key}={value}" for key, value in wrong[0].apart.items()) or "the first"
        raise UserError(
            f"{len(wrong)} of {len(looks)} cells cannot run, so none was started; {cell}: {wrong[0].mistake}"
        )


def sum_up(outcomes: Sequence[JobReturn]) -> None:
    """Print what all cells of a dry run together would take."""
    from svdexp.estimate.summary import summary  # imports torch

    told = [outcome for outcome in outcomes if outcome.status is JobStatus.COMPLETED]
    apart = differences([list(outcome.overrides or []) for outcome in told])
    said = [" ".join(f"{key}={value}" for key, value in found.items()) for found in apart]
    names = [words or f"cell {number}" for number, words in enumerate(said)]
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
