"""Files that are there whole or not at all, also where several machines share the folder."""

import os
import socket
from pathlib import Path


def beside(path: Path) -> Path:
    """Where this process writes `path` before renaming it; no other process, here or on another host, writes there."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text)
    temporary.replace(path)
