"""Workloads of tests."""

from transformers import PreTrainedModel

from svdexp.allocation import Budget, Uniform, expected_ranks
from svdexp.estimate.anatomy import workload_of
from svdexp.models.structure import Targets, find_matrices
from svdexp.models.work import Workload
from svdexp.storage import FactorStorage


def workload_at(model: PreTrainedModel, ratio: float, *, windows: int, length: int) -> Workload:
    """That of uniform ranks in plain factors."""
    layers = find_matrices(model, Targets())
    budget = Budget(ratio, {layer.name: (layer.m, layer.n) for layer in layers}, FactorStorage())
    return workload_of(model, layers, budget, expected_ranks(Uniform(), budget, {}), windows=windows, length=length)
