"""What results of a run depend on, for the identities of shelves; a dry run asks for the same ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from svdexp.models.matrices import Matrix
from svdexp.runtime.shelves import fingerprint


def source_of(weights: str, windows: torch.Tensor, layers: Sequence[Matrix]) -> dict[str, Any]:
    """The dense model, by its fingerprint, the calibration windows (N, L), and the layers to compress."""
    return {"model": weights, "windows": fingerprint({"": windows}), "layers": [layer.name for layer in layers]}


def statistics_in(needs: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Of each statistic that some layer needs, what beside its source its shelf depends on: the layers that need it."""
    distinct = dict.fromkeys(need for asked in needs.values() for need in asked)
    return {
        need: {"statistic": need, "of": [name for name, asked in needs.items() if need in asked]} for need in distinct
    }
