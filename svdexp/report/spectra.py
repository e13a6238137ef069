"""Singular values of a run's layers, which a checkpoint saved with save=elastic holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

FOLDER = Path("checkpoint") / "elastic"  # below a run's
POINTS = 24  # of a layer's, evenly on a logarithmic axis: a page holds those of all runs


def spectra(folder: Path, layers: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """By layer some of its singular values, the first as 1; none where the run left none that can be read."""
    found = {}
    for name in (str(layer["name"]) for layer in layers):
        path = folder / FOLDER / f"{name}.safetensors"
        if path.parent != folder / FOLDER or not path.is_file():
            continue
        try:
            with safe_open(path, framework="np") as file:
                values = np.asarray(file.get_tensor("spectrum"), dtype=float)
        except (SafetensorError, OSError, TypeError, ValueError):
            continue
        if values.ndim == 1 and len(values) and np.isfinite(values).all() and values[0] > 0:
            found[name] = _some(values / values[0])
    return found


def _some(values: "np.ndarray[Any, np.dtype[np.float64]]") -> list[tuple[int, float]]:
    """Index, counted from 1, and value, of positive ones."""
    places = np.unique(np.geomspace(1, len(values), POINTS).round().astype(int))
    return [(int(place), float(f"{values[place - 1]:.4g}")) for place in places if values[place - 1] > 0]
