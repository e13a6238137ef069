"""Hidden states of all windows on disk, mapped into memory: the operating system keeps of them what it has room for."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from svdexp.runtime.disk import UnwritableError, whole_file
from svdexp.runtime.errors import UserError


class States:
    """Tensors of one shape and format by name, each in a file of `folder`, which is there whole or not at all."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: torch.dtype):
        self.folder, self.shape, self.dtype = folder, shape, dtype

    @property
    def bytes(self) -> int:
        """Of one of the files."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def read(self, name: str) -> torch.Tensor:
        """The tensor called `name`, mapped; nothing may be written to it.

        Raises:
            UserError: its file was cut short.
        """
        path = self._path(name)
        if path.stat().st_size != self.bytes:
            raise UserError(f"cache: {path} is damaged; delete the folder {self.folder}")
        return self._mapped(path)

    @contextmanager
    def write(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor to fill, which is called `name` when the block has ended without an error.

        Raises:
            UnwritableError: the disk is full.
        """
        with whole_file(self._path(name)) as partial:
            with partial.open("wb") as file:
                self._reserve(partial, file.fileno())
            yield self._mapped(partial)

    def drop(self, name: str) -> None:
        """Remove the tensor called `name`, if it is there."""
        with suppress(OSError):
            self._path(name).unlink()

    def _reserve(self, path: Path, descriptor: int) -> None:
        """Room on the disk: without it the system would end a process that writes to a mapped file."""
        try:
            os.posix_fallocate(descriptor, 0, self.bytes)
        except OSError as error:
            raise UnwritableError(path, error) from error

    def _mapped(self, path: Path) -> torch.Tensor:
        flat = torch.from_file(str(path), shared=True, size=math.prod(self.shape), dtype=self.dtype)
        return flat.reshape(self.shape)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.states"
