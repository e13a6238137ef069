"""Files and folders that are there whole or not at all, also where several machines share the folder.

Whoever writes does so in a workshop of its own beside the place, a folder `.NAME.HOST-PID-RANDOM.partial`, and renames
what is ready. The operating system holds a lock in it as long as the writer lives; the next writer of the same name
removes the workshops of those that were killed.
"""

import errno
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from svdexp.runtime.errors import UserError

LOCK = "lock"
# The folder that gave its place to another; numbered, because other writers may have come first.
OLD = "old"
# The file system, or a part of it, takes nothing from this user: not a matter of room.
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# What the disk and the system say that no program can help.
OUTSIDE = (*READ_ONLY, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO)


class UnwritableError(UserError):
    """A file or folder cannot be written.

    Attributes:
        path: what was to be written.
        reason: the operating system's words.
        number: its errno; None if it gave none.
    """

    def __init__(self, path: Path, error: Exception):
        super().__init__(path, error)
        # safetensors has the number in its words only
        number = re.search(r"os error (\d+)", str(error))
        self.path = path
        self.number = int(number[1]) if number else getattr(error, "errno", None)
        words = os.strerror(self.number) if self.number else str(error).strip() or type(error).__name__
        self.reason = words.splitlines()[0]

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be written and is as it was before: {self.reason}; all else that was complete is kept"
        )


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    found = folder.absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        UnwritableError: it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write the file that takes the name `path` when the block has ended without an error.

    Raises:
        UnwritableError: it cannot be written, for instance because the disk is full; nothing is left behind.
    """
    with _workshop(path) as shop:
        partial = shop / path.name
        yield partial
        partial.chmod(_plain_mode(shop))
        partial.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` when the block has ended without an error.

    What had the name before keeps it until then, and gets it back if a process died while they changed places. Of
    several processes that write one folder each puts its own there, whole; the last one's stays.

    Raises:
        UnwritableError: as `whole_file`.
    """
    with _workshop(folder) as shop:
        partial = shop / folder.name
        partial.mkdir()
        yield partial
        mode = _plain_mode(shop)
        for path in partial.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(mode)
        _take_place(partial, folder, shop)


def _take_place(partial: Path, folder: Path, shop: Path) -> None:
    """Rename `partial` to `folder`; a folder cannot be renamed over a full one, so that goes into the workshop."""
    for turn in range(1000):  # each is another writer's that came first
        try:
            partial.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or turn == 999:
                raise
        with suppress(FileNotFoundError):
            folder.rename(shop / f"{OLD}{turn}")


@contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is this process's alone and gone after the block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        shop, lock = _opened(path)
        with lock:
            try:
                yield shop
            finally:
                _close(shop, path)
    except (OSError, SafetensorError) as error:
        raise UnwritableError(path, error) from error


def _opened(path: Path) -> tuple[Path, FileLock]:
    """A new workshop and its lock, held."""
    while True:
        shop = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
        shop.mkdir()
        lock = FileLock(shop / LOCK)
        # before it is held, another writer may take this workshop for a dead one's
        with suppress(Timeout):
            lock.acquire(timeout=0)
            if (shop / LOCK).exists():
                return shop, lock
            lock.release()


def _host() -> str:
    return socket.gethostname().replace(".", "-").replace("/", "-")


def _clear(path: Path) -> None:
    """Remove what killed writers of `path` left."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.partial")
    for shop in [Path(entry) for entry in os.scandir(path.parent) if ours.fullmatch(entry.name)]:
        if (shop / LOCK).is_file():
            with suppress(Timeout, OSError), FileLock(shop / LOCK).acquire(timeout=0):
                _close(shop, path)


def _close(shop: Path, path: Path) -> None:
    """Remove a workshop; what was taken away from `path` goes back if nothing has come in its place."""
    for old in sorted(shop.glob(f"{OLD}[0-9]*"), reverse=True):
        with suppress(OSError):
            if not path.exists():
                old.rename(path)
    shutil.rmtree(shop, ignore_errors=True)


def _plain_mode(shop: Path) -> int:
    """The permissions that a plain open() gives a file here; safetensors makes files that only their owner reads."""
    probe = shop / "probe"
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)
