"""Results of finished stages on disk, found again by what they were computed from.

A shelf belongs to one identity: a hash of everything that changes the result. Its items are safetensors
files, written under a temporary name and renamed, so a reader never sees half a file and two runs may share
a folder.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from svdexp.disk import beside, write_atomically
from svdexp.models.structure import stored_tensors

log = logging.getLogger(__name__)

# Part of every identity; raise it when a change to the mathematics makes older files wrong.
FORMAT = 1


def identity(**ingredients: Any) -> str:
    """A short hash of JSON-serialisable ingredients; equal ingredients, equal hash, in any process."""
    text = json.dumps({"format": FORMAT, **ingredients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
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


# Keys of a model's config that do not change what it computes; its number format shows in its tensors.
INCIDENTAL = ("_name_or_path", "architectures", "auto_map", "dtype", "svdexp", "transformers_version")


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of all that a model stores and of its config: equal weights under another RoPE base differ."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in INCIDENTAL}
    return identity(weights=fingerprint(stored_tensors(model)), config=json.dumps(config, sort_keys=True, default=str))


class Shelf:
    """Named sets of tensors of one stage, in memory or, given a folder, on disk."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._memory: dict[str, dict[str, torch.Tensor]] = {}

    def get(self, item: str) -> dict[str, torch.Tensor] | None:
        """The item's tensors, or None if it was never put, or is damaged: then it is dropped, with a warning."""
        if self.folder is None:
            return self._memory.get(item)
        path = self._path(self.folder, item)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                promised = (file.metadata() or {}).get("checksum")
            reason = None if promised == checksum(tensors) else "its contents do not match their checksum"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        if reason is None:
            return tensors
        log.warning("cache: %s is damaged (%s) and will be computed again", path, reason)
        path.unlink(missing_ok=True)
        return None

    def remember(self, item: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The item's tensors; what `compute` returns is put where there are none."""
        tensors = self.get(item)
        if tensors is None:
            tensors = compute()
            self.put(item, tensors)
        return tensors

    def __contains__(self, item: str) -> bool:
        """Whether the item was put, without reading it."""
        return item in self._memory if self.folder is None else self._path(self.folder, item).exists()

    def put(self, item: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep the item's tensors."""
        if self.folder is None:
            self._memory[item] = tensors
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self.folder, item)
        temporary = beside(path)
        # clone(): layers may share a tensor or view one, and a safetensors file stores each by itself
        alone = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
        }
        save_file(alone, temporary, metadata={"checksum": checksum(alone)})
        temporary.replace(path)

    @staticmethod
    def _path(folder: Path, item: str) -> Path:
        return folder / f"{item}.safetensors"


class Cache:
    """Shelves under one folder; without a folder each shelf lives in memory as long as its run."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def shelf(self, stage: str, **ingredients: Any) -> Shelf:
        """The shelf of a stage; `ingredients` say what its results depend on and are written beside them."""
        if self.folder is None:
            return Shelf()
        folder = self.folder / stage / identity(**ingredients)
        note = folder / "identity.json"
        if not note.exists():
            write_atomically(note, json.dumps(ingredients, indent=2, sort_keys=True))
        return Shelf(folder)
