"""Dense models and tokenizers from GGUF files, kept in the cache as others are on disk: reading a GGUF file takes ten
times as long."""

import logging
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AutoTokenizer, PreTrainedModel

from svdexp.checkpoints import gguf_tokenizer
from svdexp.checkpoints.intake import weights_read
from svdexp.checkpoints.loading import Source, load_model, load_tokenizer, locate, rope_scaling
from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.models.fingerprint import model_fingerprint
from svdexp.runs.foreseen import note_weights, noted_weights
from svdexp.runtime.contents import digest
from svdexp.runtime.disk import whole_folder
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import identity
from svdexp.schema import Config, ModelConfig

log = logging.getLogger(__name__)


class Saved(Protocol):
    """What can write itself into a folder: a model, a tokenizer."""

    def save_pretrained(self, save_directory: Path) -> Any:
        """Write it."""


def tokenizer_of(model: ModelConfig, cache: str | None) -> Any:
    """The tokenizer of a model, from the folder `cache` if its GGUF file was converted before.

    Raises:
        UserError: as `load_tokenizer`.
    """
    source = locate(model)
    if source.gguf_file is None or not cache:
        return load_tokenizer(model)
    made_by = {name: version(name) for name in ("transformers", "tokenizers")}
    made_by["svdexp"] = digest(Path(gguf_tokenizer.__file__), None)
    folder = _folder(source, Path(cache), part="tokenizer", **made_by)
    if (kept := _kept_tokenizer(folder)) is not None:
        gguf_tokenizer.warn_of_unknown(Path(source.location) / source.gguf_file)
        return kept
    tokenizer = load_tokenizer(model)
    if Processes().main:
        keep(tokenizer, folder)
    return tokenizer


def _kept_tokenizer(folder: Path) -> Any | None:
    """The tokenizer in `folder`, if there is one; what is damaged is removed, what cannot be read stays."""
    if not folder.is_dir() or not _opens(folder):
        return None
    try:
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
        ):  # without the second one it would load without BOS or EOS
            (folder / name).read_bytes()
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # damaged contents raise a dozen types
        log.debug("%s", error)
    _discard(folder)
    return None


class Dense(NamedTuple):
    """A dense model and its fingerprint."""

    model: PreTrainedModel
    weights: str


def dense_model(config: Config, dtype: torch.dtype, device: torch.device, blocks: Path | None = None) -> Dense:
    """The dense model of a run, from the cache if its GGUF file was converted before; its fingerprint is noted there.

    Given `blocks`, a folder of its own, it is streamed.

    Raises:
        UserError: as `load_model`.
    """
    source = locate(config.model)
    if source.gguf_file is not None and config.cache:
        return _converted(config, Path(config.cache), source, dtype, device)
    model = load_streamed(config.model, dtype, device, blocks) if blocks else load_model(config.model, dtype, device)
    weights = model_fingerprint(model)
    note_weights(config, dtype, weights)
    return Dense(model, weights)


def _converted(config: Config, cache: Path, source: Source, dtype: torch.dtype, device: torch.device) -> Dense:
    """From the cache, if what is there is whole; else from the GGUF file, and kept."""
    folder = _folder_of_model(config.model, cache, source, dtype)
    kept = replace(config.model, path=str(folder), revision=None)
    if folder.is_dir() and _opens(folder):
        try:
            model = load_model(kept, dtype, device)
            weights = model_fingerprint(model)
            if weights == noted_weights(config, dtype):
                return Dense(model, weights)
        except UserError as error:
            log.debug("%s", error)
        _discard(folder)
    model = load_model(config.model, dtype, device)
    weights = model_fingerprint(model)
    if Processes().main:
        keep(model, folder)
        note_weights(config, dtype, weights, anew=True)
    return Dense(model, weights)


def weight_files(config: Config, dtype: torch.dtype) -> list[Path] | None:
    """The files on this disk that the weights will be read from; None where a GGUF file must be converted first."""
    source = locate(config.model)
    folder = Path(source.location)
    if source.gguf_file is not None:
        if not config.cache:
            return None
        folder = _folder_of_model(config.model, Path(config.cache), source, dtype)
        return sorted(folder.glob("*.safetensors")) or None
    return weights_read(folder)


def _folder_of_model(model: ModelConfig, cache: Path, source: Source, dtype: torch.dtype) -> Path:
    made: dict[str, Any] = {"dtype": str(dtype), "transformers": version("transformers")}
    if scaling := rope_scaling(model):  # which older versions left out
        made["rope"] = scaling
    return _folder(source, cache, **made)


def _folder(source: Source, cache: Path, **made: Any) -> Path:
    """Where a part of a GGUF file is kept, that was `made` so."""
    content = digest(Path(source.location) / str(source.gguf_file), cache / "contents")
    return cache / "converted" / identity(content=content, **made)


def _opens(folder: Path) -> bool:
    """Whether all files in `folder` can be opened; where one cannot, that says nothing of what is in it."""
    try:
        for path in filter(Path.is_file, folder.iterdir()):
            path.open("rb").close()
    except OSError as error:
        log.warning("%s cannot be read, and is done without: %s", folder, error.strerror or error)
        return False
    return True


def _discard(folder: Path) -> None:
    log.warning("%s is damaged and made again", folder)
    shutil.rmtree(folder, ignore_errors=True)


def keep(model: Saved, folder: Path) -> None:
    """Leave `model` in `folder`, if that can be written; nothing depends on it."""
    if folder.exists():  # another process may have been first
        return
    try:
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
    except Exception as error:  # a full disk has many types
        log.warning("%s cannot be kept: %s", folder, error)
