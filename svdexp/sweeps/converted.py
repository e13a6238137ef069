"""Dense models from GGUF files, kept in the cache as safetensors: reading a GGUF file takes ten times as long."""

import logging
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from svdexp.cache import identity, model_fingerprint
from svdexp.disk import beside
from svdexp.errors import UserError
from svdexp.models.loading import load_model, locate
from svdexp.processes import Processes
from svdexp.schema import Config
from svdexp.sweeps.cached import note_weights, noted_weights
from svdexp.sweeps.identity import digest

log = logging.getLogger(__name__)


def dense_model(config: Config, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The dense model of a run, from the cache if its GGUF file was converted before; its fingerprint is noted there.

    Raises:
        UserError: as `load_model`.
    """
    model = _kept_or_read(config, dtype, device)
    note_weights(config, model)
    return model


def _kept_or_read(config: Config, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    source = locate(config.model)
    if source.gguf_file is None or not config.cache:
        return load_model(config.model, dtype, device)
    cache = Path(config.cache)
    content = digest(Path(source.location) / source.gguf_file, cache / "contents")
    folder = cache / "converted" / identity(content=content, dtype=str(dtype), transformers=version("transformers"))
    kept = replace(config.model, path=str(folder), revision=None)
    if folder.is_dir():
        try:
            model = load_model(kept, dtype, device)
            if model_fingerprint(model) == noted_weights(config, dtype):
                return model
        except UserError as error:
            log.debug("%s", error)
        log.warning("%s is damaged and made again", folder)
        shutil.rmtree(folder, ignore_errors=True)
    model = load_model(config.model, dtype, device)
    if Processes().main:
        keep(model, folder)
    return model


def keep(model: PreTrainedModel, folder: Path) -> None:
    """Leave `model` in `folder`, if that can be written; nothing depends on it."""
    partial = beside(folder)
    try:
        model.save_pretrained(partial)
        if not folder.exists():  # another process may have been first
            partial.rename(folder)
    except Exception as error:  # a full disk has many types
        log.warning("%s cannot be kept: %s", folder, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
