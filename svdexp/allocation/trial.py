"""Try ranks on the model: install truncated layers, look, and always put the dense ones back."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from svdexp.allocation.budget import Evidence
from svdexp.evaluation import NotFiniteError, perplexity
from svdexp.models.matrices import Ranks, named


@contextmanager
def truncated_layers(evidence: Evidence, ranks: Ranks) -> Iterator[None]:
    """Within this context the layers in `ranks` are truncated; afterwards, error or not, dense as before."""
    model = evidence.model
    wanted = {name: rank for name, rank in ranks.items() if rank is not None}
    dense = {matrix: matrix.layer(model) for matrix in named(model, wanted)}
    try:
        for matrix in dense:
            matrix.put(model, evidence.truncated(matrix.name, wanted[matrix.name]))
        yield
    finally:
        for matrix, layer in dense.items():
            matrix.put(model, layer)


def trial_perplexity(evidence: Evidence, ranks: Ranks, windows: torch.Tensor) -> float:
    """Perplexity on `windows` (N, L) with `ranks`; infinite where the truncated model's loss is not finite."""
    with truncated_layers(evidence, ranks):
        try:
            return perplexity(evidence.model, windows, what=None).value
        except NotFiniteError:
            return math.inf
