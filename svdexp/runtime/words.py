"""What of a program's log people read on the console, and how; the log file has all of it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TextIO

OURS = ("svdexp", "hydra_plugins")  # loggers whose words are for whoever sits there
FILE_ONLY = {"file_only": True}  # log.info(…, extra=FILE_ONLY): what the console shows otherwise, or in short


class Ours(logging.Filter):
    """Lets our own words pass, and others' errors: their warnings are nothing that a user of svdexp can mend."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the console shows it."""
        ours = record.name.partition(".")[0] in OURS
        return not getattr(record, "file_only", False) and (ours or record.levelno >= logging.ERROR)


class Words(logging.Formatter):
    """A line as it is; before a warning or an error stands what it is."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said = super().format(record)
        return said if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {said}"


class Console(logging.StreamHandler[TextIO]):
    """Writes lines between progress bars, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; a bar that is there goes away before and comes back after it."""
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


@contextmanager
def quiet(logger: str, least: int = logging.CRITICAL) -> Iterator[None]:
    """Within this context another's logger says nothing below the level `least`."""
    speaker = logging.getLogger(logger)
    before = speaker.level
    speaker.setLevel(least)
    try:
        yield
    finally:
        speaker.setLevel(before)
