"""Try ranks on the model: install truncated layers, look, and always put the dense ones back."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from svdexp.allocation.budget import Evidence
from svdexp.evaluation import NotFiniteError, perplexity
from svdexp.models.matrices import Ranks
from svdexp.models.structure import replace


@contextmanager
def truncated_layers(evidence: Evidence, ranks: Ranks) -> Iterator[None]:
    """Within this context the layers in `ranks` are truncated; afterwards, error or not, dense as before."""
    dense = {name: evidence.model.get_submodule(name) for name, rank in ranks.items() if rank is not None}
    try:
        for name, rank in ranks.items():
            if rank is not None:
                replace(evidence.model, name, evidence.truncated(name, rank))
        yield
    finally:
        for name, module in dense.items():
            replace(evidence.model, name, module)


def trial_perplexity(evidence: Evidence, ranks: Ranks, windows: torch.Tensor) -> float:
    """Perplexity on `windows` (N, L) with `ranks`; infinite where the truncated model's loss is not finite."""
    with truncated_layers(evidence, ranks):
        try:
            return perplexity(evidence.model, windows, what=None).value
        except NotFiniteError:
            return math.inf
