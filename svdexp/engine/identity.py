"""What results of a run depend on, for the identities of shelves; a dry run asks for the same ones."""

from collections.abc import Sequence
from typing import Any

import torch

from svdexp.models.matrices import Matrix
from svdexp.runtime.shelves import fingerprint


def source_of(weights: str, windows: torch.Tensor, layers: Sequence[Matrix]) -> dict[str, Any]:
    """The dense model, by its fingerprint, the calibration windows (N, L), and the layers to compress."""
    return {"model": weights, "windows": fingerprint({"": windows}), "layers": [layer.name for layer in layers]}
