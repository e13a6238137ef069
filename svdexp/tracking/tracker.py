"""What every tracker can do, and why none can kill a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from svdexp.cells import UNTRACKED
from svdexp.runtime.errors import UserError
from svdexp.schema import Config
from svdexp.tracking.findings import Findings

log = logging.getLogger(__name__)

T = TypeVar("T")
Log = Callable[[Findings], None]


class Session(Protocol):
    """One run, tracked."""

    def log(self, findings: Findings) -> None:
        """Take everything that the run found; called once, when results.json is written."""

    def finish(self, succeeded: bool) -> None:
        """End the session; called once, last, whatever happened before."""


class Tracker(Protocol):
    """A choice of the config group `tracker`: a frozen dataclass of options."""

    def start(self, config: Config, run_dir: Path) -> Session:
        """Begin to track the run; what the tracker writes belongs into `run_dir`.

        Where `run_dir` has untracked.json, an earlier session began to, and was not told of the end.
        """


@contextmanager
def tracked(tracker: Tracker, config: Config, run_dir: Path) -> Iterator[Log]:
    """Track what runs in this context, which gets the function that takes its results.

    A tracker that fails, in whatever way, is one warning line and tracks no further; the run goes on. Only of one that
    was told everything untracked.json is removed.
    """
    guard = _Guard()
    session = guard.attempt(partial(tracker.start, config, run_dir))

    told = False

    def take(findings: Findings) -> None:
        nonlocal told
        told = True
        if session is not None:
            guard.attempt(partial(session.log, findings))

    succeeded = False
    try:
        yield take
        succeeded = True
    finally:
        if session is not None:
            guard.attempt(partial(session.finish, succeeded))
    if told and not guard.failed:
        (run_dir / UNTRACKED).unlink(missing_ok=True)


def complete(tracker: Tracker, config: Config, run_dir: Path) -> None:
    """Track a finished run whose process ended before its tracker was told, or whose tracker failed."""
    try:
        findings = Findings.left_in(run_dir)
    except UserError as error:
        log.warning("tracker: %s; the run stays without it", error)
        return
    log.info("the tracker is told of %s", run_dir)
    with tracked(tracker, config, run_dir) as track:
        track(findings)


class _Guard:
    """Turns the first of a tracker's exceptions into a warning, and the others into nothing."""

    def __init__(self) -> None:
        self.failed = False

    def attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; None if it raised."""
        try:
            return action()
        except Exception as error:  # whatever a tracker raises
            if not self.failed:
                reason = " ".join(str(error).split())
                log.warning("tracker: %s: %s; the run goes on without it", type(error).__name__, reason)
            self.failed = True
            return None
