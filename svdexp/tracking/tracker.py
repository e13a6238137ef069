"""What every tracker can do, and why none can kill a run."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from svdexp.cells import UNTRACKED
from svdexp.record import RESULTS, Results
from svdexp.record.results import CELL, TRACKER_URL
from svdexp.runtime.clock import StageClock
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_object
from svdexp.schema import Config
from svdexp.tracking.findings import Findings
from svdexp.tracking.record import by_stage

log = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS_BETWEEN = 1.0  # that stages are told of: a model of many blocks ends one of them every moment


class Session(Protocol):
    """One run, tracked."""

    @property
    def url(self) -> str | None:
        """Where it can be looked at; None where it has no URL."""

    def stages(self, figures: Results) -> None:
        """Take seconds and peak memory of stages, of those that changed, under their keys; called while the run goes.

        A stage that runs again, or goes on, has its sum so far.
        """

    def log(self, findings: Findings) -> None:
        """Take everything that the run found; called once, when results.json is written."""

    def finish(self, succeeded: bool) -> None:
        """End the session; called once, last, whatever happened before."""


class Tracker(Protocol):
    """A choice of the config group `tracker`: a frozen dataclass of options."""

    def start(self, config: Config, run_dir: Path, cell: str) -> Session:
        """Begin to track the run, or go on with it, where an earlier process began; `cell` is its identity.

        What the tracker writes belongs into `run_dir`, or into the sweep's folder. Where `run_dir` has untracked.json,
        an earlier session was not told of the end.
        """


class Telling:
    """What a run tells its tracker, which may fail, in whatever way: that is one warning line, and the run goes on.

    Attributes:
        url: where the tracker shows the run, if anywhere.
    """

    def __init__(self, start: Callable[[], Session]) -> None:
        self._failed = self._told = False
        self._said: Results = {}
        self._shown: Results = {}  # by the clock, when it was last looked at
        self._when = -SECONDS_BETWEEN
        self._session = self._attempt(start)
        self.url = self._session.url if self._session else None

    @property
    def complete(self) -> bool:
        """Whether the tracker took everything."""
        return self._told and not self._failed

    def stage(self, clock: StageClock) -> None:
        """What the clock shows, as a stage ended."""
        self._shown = by_stage(clock)
        if time.monotonic() >= self._when + SECONDS_BETWEEN:
            self._stages()

    def findings(self, findings: Findings) -> None:
        """Everything, at the end."""
        self._stages()
        self._told = True
        if self._session:
            self._attempt(partial(self._session.log, findings))

    def end(self, succeeded: bool) -> None:
        """Nothing comes after this."""
        if self._session:
            self._attempt(partial(self._session.finish, succeeded))

    def _stages(self) -> None:
        """Tell of the stages that changed since they were told of."""
        new = {key: value for key, value in self._shown.items() if self._said.get(key) != value}
        if new and self._session and not self._failed:
            self._attempt(partial(self._session.stages, new))
        self._said, self._when = self._shown, time.monotonic()

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; None if it raised."""
        try:
            return action()
        except Exception as error:  # whatever a tracker raises
            if not self._failed:
                reason = " ".join(str(error).split())
                log.warning("tracker: %s: %s; the run goes on without it", type(error).__name__, reason)
            self._failed = True
            return None


@contextmanager
def tracked(tracker: Tracker, config: Config, run_dir: Path, cell: str) -> Iterator[Telling]:
    """Track what runs in this context, which gets what it tells its stages and its results.

    Only of a tracker that was told everything untracked.json is removed.
    """
    telling = Telling(partial(tracker.start, config, run_dir, cell))
    succeeded = False
    try:
        yield telling
        succeeded = True
    finally:
        telling.end(succeeded)
    if telling.complete:
        (run_dir / UNTRACKED).unlink(missing_ok=True)


def complete(tracker: Tracker, config: Config, run_dir: Path) -> bool:
    """Track a finished run whose process ended before its tracker was told, or whose tracker failed; whether it is."""
    try:
        findings = Findings.left_in(run_dir)
    except UserError as error:
        log.warning("tracker: %s; the run stays without it", error)
        return False
    log.info("the tracker is told of %s", run_dir)
    with tracked(tracker, config, run_dir, CELL.of(findings.results)) as telling:
        telling.findings(findings)
    if telling.url:
        note_url(run_dir, telling.url)
    return telling.complete


def note_url(run_dir: Path, url: str) -> None:
    """Where a run can be looked at, in its record; a failed run has none."""
    if (run_dir / RESULTS).is_file():
        results = read_object(run_dir / RESULTS) | TRACKER_URL.says(url)
        write_atomically(run_dir / RESULTS, json.dumps(results, indent=1))
