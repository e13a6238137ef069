"""What an allocation may look at, and the ranks and forms that it chooses."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from svdexp.allocation import Budget, Evidence, RankCurves, allocate, measure
from svdexp.data.reads import described
from svdexp.engine.benches import Benches, Decomposed, blockwise_bench
from svdexp.engine.job import Job
from svdexp.engine.losses import Losses
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Decomposition
from svdexp.models.matrices import Ranks
from svdexp.schema import SigmaFuse, Traversal


def evidence(
    job: Job,
    bench: Workbench | None,
    found: Mapping[str, Decomposition],
    losses: Mapping[str, Losses],
) -> Evidence:
    """What the allocation may look at."""
    method = job.method
    made_with = {
        "weighting": described(method.weighting),
        "numerics": method.numerics,
        "storage": described(method.storage),
    }
    if method.sigma_fuse is not SigmaFuse.balanced:  # of which older files say nothing
        made_with["fuse"] = method.sigma_fuse
    matrices = {matrix.name: matrix for matrix in job.layers}

    @lru_cache(maxsize=1)  # one layer is tried out at several ranks
    def decomposition(name: str) -> Decomposition:
        assert bench is not None, "an allocation that builds layers must set needs_spectra"
        return bench.decompositions(matrices[name].group, [name])[name]

    def truncated(name: str, rank: int) -> nn.Module:
        factors, matrix = decomposition(name).truncate(rank, method.sigma_fuse), matrices[name]
        kept = bench.kept(matrix.group, name) if bench else None
        return method.storage.layer(factors, matrix.bias(job.model), matrix.weight(job.model), kept)

    values = {name: part.spectrum for name, part in found.items()}
    return Evidence(job.model, job.windows, values, truncated, made_with, job.measured, job.seed, losses)


class Allocated(NamedTuple):
    """The job with a form for every layer, where that was chosen; ranks, how they were learned, forms, and what they
    follow from; and the decompositions that they truncate, with the spectra that are known."""

    job: Job
    ranks: Ranks
    curves: RankCurves | None
    forms: Mapping[str, str]
    evidence: Evidence
    benches: Benches
    spectra: Mapping[str, Decomposition]


def allocated(job: Job, dense: Decomposed, budget: Budget, fixed: Ranks) -> Allocated:
    """A rank for every layer; decompositions are then those of the dense model or, blockwise, still to be made.

    Raises:
        UserError: the budget is too small.
    """
    method, part = job.method, job.method.storage.split
    with job.clock("allocation"):
        known = evidence(job, dense.benches.get(part), dense.spectra, dense.losses)
        known = measure(method.allocation, budget.without(fixed), known)
        ranks, curves, forms = allocate(method.allocation, budget, fixed, known)
    job = job.choosing(forms)
    if method.weighting and method.traversal is not Traversal.dense:
        benches = {part: blockwise_bench(job, method.weighting, ranks)}
        return Allocated(job, ranks, curves, forms, known, benches, {})
    return Allocated(job, ranks, curves, forms, known, dense.benches, dense.spectra)
