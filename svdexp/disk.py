"""Files and folders that are there whole or not at all, also where several machines share the folder."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from svdexp.errors import UserError


def beside(path: Path) -> Path:
    """Where this process writes `path` before renaming it; no other process, here or on another host, writes there."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text)
    temporary.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` when the block has ended without an error.

    What had the name before keeps it until then, and gets it back if a process died while they changed places.

    Raises:
        UserError: it cannot be written, for instance because the disk is full; nothing is left behind.
    """
    partial, previous = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "previous"))
    try:
        _settle(folder, previous)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():  # a folder cannot be renamed over a full one
            folder.rename(previous)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{folder} cannot be written and is as it was before: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(folder, previous)


def _settle(folder: Path, previous: Path) -> None:
    """Leave one of the two, under the name of the first."""
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.exists():
        previous.rename(folder)
