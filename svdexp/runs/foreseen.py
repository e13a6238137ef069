"""What a dry run can say about the cache, without the weights that its shelves are known by.

A run notes the fingerprint of the model that it loaded under the identity of the model's files.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from svdexp.cells.identity import model_files
from svdexp.engine.identity import source_of, statistics_in
from svdexp.estimate.calibration import measures_dense
from svdexp.method import Method
from svdexp.models.matrices import Matrix
from svdexp.runtime.contents import digest
from svdexp.runtime.shelves import Shelf, identity, shelf_folder, write_note
from svdexp.schema import Config


def note_weights(config: Config, dtype: torch.dtype, weights: str, anew: bool = False) -> None:
    """Note the fingerprint of what the model's files hold in the format `dtype`, if it is not noted yet, or `anew`."""
    if not config.cache:
        return
    note = _note(config, config.cache, dtype)
    if anew or not note.is_file():
        write_note(note, weights)


def noted_weights(config: Config, dtype: torch.dtype) -> str | None:
    """The fingerprint that was noted of the model's files in `dtype`, if there is one."""
    note = _note(config, config.cache, dtype) if config.cache else None
    return note.read_text() if note and os.access(note, os.R_OK) else None


def cached_stages(
    config: Config,
    method: Method,
    model: PreTrainedModel,
    layers: Sequence[Matrix],
    windows: Callable[[], torch.Tensor],
) -> str:
    """Which of the dense model's statistics and decompositions are there, in one line.

    `model` may be on the meta device; `windows` gives the calibration windows and is asked only where they can matter.
    """
    if not (config.cache and method.weighting and measures_dense(method)):
        return "in the cache: nothing that a dry run looks for"
    weights = noted_weights(config, model.dtype)
    if weights is None:
        return "in the cache: nothing of this model"
    source = source_of(weights, windows(), layers)
    needs = method.statistics(layers)
    shelves = {need: ("statistics", about) for need, about in statistics_in(needs).items()}
    shelves["decompositions"] = ("decompositions", method.decomposition)
    counts = []
    for name, (stage, about) in shelves.items():
        shelf = Shelf(shelf_folder(Path(config.cache), stage, **about, **source))
        groups = {layer.group for layer in layers if layer.name in about.get("of", [layer.name])}
        counts.append(f"{name} of {sum(group in shelf for group in groups)} of {len(groups)} blocks")
    return f"in the cache: {', '.join(counts)}"


def _note(config: Config, cache: str, dtype: torch.dtype) -> Path:
    notes = Path(cache) / "contents"
    files = {path.name: digest(path, notes) for path in model_files(config.model)}
    named = {} if files else {"path": config.model.path, "revision": config.model.revision}
    return Path(cache) / "models" / identity(files=files, dtype=str(dtype), **named)
