"""Results of finished stages on disk, found again by what they were computed from.

A shelf belongs to one identity: a hash of everything that changes the result. Its items are safetensors
files that appear whole (disk.py), so a reader never sees half a file and two runs may share a folder. Only its contents
make a file damaged: what cannot be opened stays as it is.
"""

import hashlib
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from svdexp.runtime.disk import READ_ONLY, UnwritableError, nearest_folder, whole_file, write_atomically
from svdexp.runtime.errors import UserError

log = logging.getLogger(__name__)

# Part of the identity of every shelf; raise it when a change to the mathematics, or to how a stage lays out what it
# keeps, makes older files wrong. tests/runtime/test_mathematics.py notices the former.
FORMAT = 5
# The key of a file's header under which it has the checksums of its tensors.
CHECKSUMS = "checksums"


def identity(**ingredients: Any) -> str:
    """A short hash of JSON-serialisable ingredients; equal ingredients, equal hash, in any process and version."""
    # "format": 1 stands for nothing; with it, models and cells have the hash that older records have of them.
    text = json.dumps({"format": 1, **ingredients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def shelf_folder(cache: Path, stage: str, **ingredients: Any) -> Path:
    """Where a stage's results lie that depend on `ingredients`, in this FORMAT."""
    return cache / stage / identity(**{"format": FORMAT, **ingredients})


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]  # one at a time: not all need be in memory
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Tells damage from an intact file: fast, and no protection against intent."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(_bytes(tensor), value)
    return f"{value:08x}"


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Shelf:
    """Named sets of tensors of one stage, in memory or, given a folder, on disk.

    What the disk does not let this user write or read stays in memory: such a folder is read and nothing else.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._memory: dict[str, dict[str, torch.Tensor]] = {}

    def get(self, item: str, keys: Collection[str] | None = None) -> dict[str, torch.Tensor] | None:
        """The item's tensors, or None if it was never put, or is damaged: then it is dropped, with a warning.

        Given `keys`, only these are read, and only their damage is noticed.

        Raises:
            UserError: it is there and cannot be read, for a reason that says nothing about its contents.
        """
        if self.folder is None or item in self._memory:
            return _only(self._memory.get(item), keys)
        path = self._path(self.folder, item)
        try:
            path.open("rb").close()  # safetensors takes whatever keeps it from opening a file for its absence
            tensors, promised = _read(path, keys)
            if promised == _checksums(tensors):
                return tensors
            reason = "its contents do not match their checksum"
        except FileNotFoundError:
            return None
        except PermissionError as error:
            log.warning("cache: %s cannot be read and stays as it is: %s", path, error.strerror)
            return None
        except OSError as error:
            raise UserError(f"cache: {path} cannot be read and stays as it is: {error.strerror or error}") from error
        except SafetensorError as error:
            reason = str(error)
        log.warning("cache: %s is damaged (%s) and will be computed again", path, reason)
        with suppress(OSError):
            path.unlink()
        return None

    def remember(self, item: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The item's tensors; what `compute` returns is put where there are none."""
        tensors = self.get(item)
        if tensors is None:
            tensors = compute()
            self.put(item, tensors)
        return tensors

    def __contains__(self, item: str) -> bool:
        """Whether the item was put and may be read, without reading it."""
        if item in self._memory or self.folder is None:
            return item in self._memory
        return os.access(self._path(self.folder, item), os.R_OK)

    def put(self, item: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep the item's tensors; in memory where there is no folder that can be written.

        Raises:
            UserError: the disk is full.
        """
        if self.folder is None:
            self._memory[item] = tensors
            return
        path = self._path(self.folder, item)
        if path.exists() and not os.access(path, os.R_OK):  # another user's
            self._memory[item] = tensors
            return
        alone = _alone(tensors)
        try:
            with whole_file(path) as partial:
                save_file(alone, partial, metadata={CHECKSUMS: json.dumps(_checksums(alone))})
        except UnwritableError as error:
            require_read_only(error)
            self._memory[item] = tensors

    @staticmethod
    def _path(folder: Path, item: str) -> Path:
        return folder / f"{item}.safetensors"


def write_note(path: Path, text: str) -> None:
    """Leave a text file in a cache, if this user may write it.

    Raises:
        UserError: the disk is full.
    """
    try:
        write_atomically(path, text)
    except UnwritableError as error:
        require_read_only(error)


def _alone(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, each by itself, as a safetensors file stores them: layers may share a tensor or view one.

    Those that are alone already stay what they are, because a copy of a block's components takes as much as they do.
    """
    there = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
    used = Counter(tensor.untyped_storage().data_ptr() for tensor in there.values())

    def is_alone(tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        return used[storage.data_ptr()] == 1 and storage.nbytes() == tensor.nbytes and tensor.is_contiguous()

    return {
        key: tensor if is_alone(tensor) else tensor.clone(memory_format=torch.contiguous_format)
        for key, tensor in there.items()
    }


def _only(tensors: dict[str, torch.Tensor] | None, keys: Collection[str] | None) -> dict[str, torch.Tensor] | None:
    return tensors if tensors is None or keys is None else {key: tensors[key] for key in keys}


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of each tensor by itself, so that some of an item can be read without the others."""
    return {key: checksum({key: tensor}) for key, tensor in tensors.items()}


def _read(path: Path, keys: Collection[str] | None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, all or those in `keys`, and the checksums that its header has of them.

    Copies: safetensors gives views of the mapped file, and the smallest of them would keep all of it in memory.
    """
    with safe_open(path, "pt") as file:
        promised: dict[str, str] = json.loads((file.metadata() or {}).get(CHECKSUMS, "{}"))
        wanted = list(file.keys()) if keys is None else keys
        tensors = {key: file.get_tensor(key).clone() for key in wanted}
        return tensors, promised if keys is None else {key: promised[key] for key in keys if key in promised}


def require_read_only(error: UnwritableError) -> None:
    """Say once that a cache that this user may not write is only read.

    Raises:
        UserError: it was something else, such as a full disk.
    """
    if error.number not in READ_ONLY:
        raise UserError(
            f"cache: {error.path} cannot be written: {error.reason}; what was finished before is kept and will be "
            "reused: make room, or name another folder with cache=FOLDER"
        ) from error
    folder = error.path.parent.parent.parent
    if folder not in _told:
        _told.add(folder)
        log.warning("cache: %s is only read, for it cannot be written: %s", folder, error.reason)


# Caches that were found to be read-only.
_told: set[Path] = set()


class Cache:
    """Shelves under one folder; without a folder each shelf lives in memory as long as its run."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def may_write(self) -> bool:
        """Whether this user may put something there; the folder need not be there yet."""
        if self.folder is None:
            return False
        return os.access(nearest_folder(self.folder), os.W_OK | os.X_OK)

    def shelf(self, stage: str, **ingredients: Any) -> Shelf:
        """The shelf of a stage; `ingredients` say what its results depend on and are written beside them."""
        if self.folder is None:
            return Shelf()
        folder = shelf_folder(self.folder, stage, **ingredients)
        note = folder / "identity.json"
        if not note.exists():
            write_note(note, json.dumps(ingredients, indent=2, sort_keys=True))
        return Shelf(folder)
