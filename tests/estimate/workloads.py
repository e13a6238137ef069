"""Workloads of tests."""

from transformers import PreTrainedModel

from svdexp.allocation import Allocation, Budget, Uniform, expected_ranks
from svdexp.estimate.anatomy import workload_of
from svdexp.models.structure import Targets, find_matrices
from svdexp.models.work import Workload
from svdexp.storage import FactorStorage, Storage


def workload_at(
    model: PreTrainedModel,
    ratio: float,
    *,
    windows: int,
    length: int,
    storage: Storage = FactorStorage(),  # noqa: B008
    allocation: Allocation = Uniform(),  # noqa: B008
) -> Workload:
    """That of uniform ranks in plain factors, or of other ranks in another storage."""
    layers = find_matrices(model, Targets())
    budget = Budget(ratio, {layer.name: (layer.m, layer.n) for layer in layers}, storage)
    return workload_of(model, layers, budget, expected_ranks(allocation, budget, {}), windows=windows, length=length)
