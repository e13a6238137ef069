"""What a file holds, as a hash."""

import hashlib
import os
from pathlib import Path

from svdexp.runtime.shelves import identity, write_note

LARGE = 64 * 2**20  # bytes; hashing takes about a second per GB, so of larger files it is done once


def digest(path: Path, notes: Path | None) -> str:
    """SHA-256 of a file's contents; of a large one it is noted in the folder `notes`, by path, size and time."""
    status = path.stat()
    note = None
    if notes and status.st_size > LARGE:
        note = notes / identity(path=str(path.resolve()), size=status.st_size, time=status.st_mtime_ns)
        if os.access(note, os.R_OK):
            return note.read_text()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if note:
        write_note(note, found)
    return found
