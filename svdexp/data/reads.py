"""What a part of a method says that it reads. Identities, checks and inputs ask every part, whatever its class.

All of it is optional: a part has the methods that apply to it, inherits from nothing for them, and may stand in a
module of the user's own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from svdexp.data.excerpt import Excerpt
from svdexp.runtime.contents import digest


@runtime_checkable
class ReadsFiles(Protocol):
    """A part whose result depends on what local files hold."""

    def files_read(self) -> Sequence[Path]:
        """The files, no folders; the part itself says so where one is missing."""


@runtime_checkable
class LearnsText(Protocol):
    """A training that may learn from a text of its own."""

    def excerpt(self) -> Excerpt | None:
        """What it reads; None is the calibration windows."""


@runtime_checkable
class UsesWindows(Protocol):
    """A part that cannot use every number of windows, or every length."""

    def check(self, count: int, length: int) -> None:
        """Raise UserError where `count` windows of `length` tokens are too few or too short."""


def files_read_by(part: object) -> list[Path]:
    """All local files that `part` reads and that are there.

    Raises:
        UserError: as `Excerpt.check`.
    """
    excerpt = excerpt_of(part)
    return _own_files(part) + (excerpt.read_from() if excerpt else [])


def excerpt_of(part: object) -> Excerpt | None:
    """The text of its own that `part` learns from, if there is one."""
    return part.excerpt() if isinstance(part, LearnsText) else None


def check_windows_of(part: object, count: int, length: int) -> None:
    """Raise UserError where `part` cannot use `count` windows of `length` tokens."""
    if isinstance(part, UsesWindows):
        part.check(count, length)


def described(part: object) -> str:
    """A part as the identity of what is made with it knows it: class, options, and what the files hold that it names.

    Of a text of its own that is not all: its windows have an identity themselves.
    """
    return " ".join([repr(part), *contents_of(part)])


def contents_of(part: object) -> list[str]:
    """A hash of each of the files that it names."""
    return [digest(path, None) for path in _own_files(part)]


def _own_files(part: object) -> list[Path]:
    return [path for path in part.files_read() if path.is_file()] if isinstance(part, ReadsFiles) else []
