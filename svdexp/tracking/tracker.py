"""What every tracker can do, and why none can kill a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from svdexp.compression import Compression
from svdexp.schema import Config
from svdexp.tracking.record import Results

log = logging.getLogger(__name__)

T = TypeVar("T")
Log = Callable[[Results, Compression], None]


class Session(Protocol):
    """One run, tracked."""

    def log(self, results: Results, compression: Compression) -> None:
        """Take everything that the run found; called once, when results.json is written."""

    def finish(self, succeeded: bool) -> None:
        """End the session; called once, last, whatever happened before."""


class Tracker(Protocol):
    """A choice of the config group `tracker`: a frozen dataclass of options."""

    def start(self, config: Config, run_dir: Path) -> Session:
        """Begin to track the run; what the tracker writes belongs into `run_dir`."""


@contextmanager
def tracked(tracker: Tracker, config: Config, run_dir: Path) -> Iterator[Log]:
    """Track what runs in this context, which gets the function that takes its results.

    A tracker that fails, in whatever way, is one warning line and tracks no further; the run goes on.
    """
    guard = _Guard()
    session = guard.attempt(partial(tracker.start, config, run_dir))

    def take(results: Results, compression: Compression) -> None:
        if session is not None:
            guard.attempt(partial(session.log, results, compression))

    succeeded = False
    try:
        yield take
        succeeded = True
    finally:
        if session is not None:
            guard.attempt(partial(session.finish, succeeded))


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
