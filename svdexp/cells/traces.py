"""A dry run leaves nothing behind: what Hydra makes before a job starts is taken away again."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from svdexp.schema import dry_device


def is_dry(cfg: Any) -> bool:
    """Whether a configuration asks for an estimate instead of a run."""
    return dry_device(getattr(cfg, "dry_run", False)) is not None


def one_dry_run(words: Sequence[str]) -> list[str]:
    """The words of a command line without dry_run=true where others say for which device: Hydra takes one of both."""
    return [word for word in words if word != "dry_run=true" or not any(w.startswith("dry_run.") for w in words)]


def remove_traces(folder: Path) -> None:
    """Close and remove Hydra's log in `folder` if nothing was written to it, and the folder if it then is empty."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == folder.absolute():
            root.removeHandler(handler)
            handler.close()
            log = Path(handler.baseFilename)
            if log.is_file() and log.stat().st_size == 0:
                log.unlink()
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove the folder, and those around it below the working directory, as far as they are empty."""
    place = folder.absolute()
    with suppress(OSError):
        place.rmdir()
        while Path.cwd() in (place := place.parent).parents:
            place.rmdir()


@contextmanager
def as_before(file: Path) -> Iterator[None]:
    """Put a file back to what it held before this context, or remove it and its empty folder."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            file.write_bytes(before)
        else:
            file.unlink(missing_ok=True)
            remove_empty(file.parent)
