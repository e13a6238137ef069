"""Where a job's statistics, decompositions and losses are made, or found on the shelf."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from svdexp.calibration import BlockwiseStatistics, DenseStatistics
from svdexp.engine.identity import statistics_in
from svdexp.engine.job import Job
from svdexp.engine.losses import LossBench, Losses
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Decomposition, Weighting
from svdexp.models.matrices import Ranks
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import shelf_folder

# Decompositions, by what storages split off of W before.
Benches = Mapping[str | None, Workbench]


def states_folder(job: Job) -> Path | None:
    """Where states of the dense model wait, should it be a streamed one; None: there is no cache."""
    return job.cache.folder and shelf_folder(job.cache.folder, "states", **job.source)


def sums_folder(job: Job) -> Path | None:
    """Where sums over the first windows are kept; None: nowhere."""
    return shelf_folder(job.cache.folder, "sums", **job.source) if job.cache.folder and job.cache.may_write() else None


def dense_statistics(job: Job) -> DenseStatistics:
    """The dense model's statistics, of which each is shared between all methods that want it of the same layers."""
    needs = job.method.statistics(job.layers)
    shelves = {
        need: job.cache.shelf("statistics", **about, **job.source) for need, about in statistics_in(needs).items()
    }
    return DenseStatistics(job.model, job.layers, job.windows, shelves, states_folder(job), needs, sums_folder(job))


def dense_benches(job: Job, weighting: Weighting, source: DenseStatistics) -> Benches:
    """Decompositions under the dense model's statistics, shared between ratios and allocations.

    Where layers are to have one of several forms, those of every form that has ranks.
    """
    method = job.method
    storages = [form.storage for form in method.storage.menu.values() if form.ranked]
    benches = {}
    for storage in storages if method.storage.menu else [method.storage]:
        shelf = job.cache.shelf("decompositions", **method.decomposition_of(storage), **job.source)
        how = weighting, method.numerics, storage
        benches[storage.split] = Workbench(job.model, job.layers, source, *how, shelf, job.clock)
    return benches


def loss_bench(job: Job, weighting: Weighting, source: DenseStatistics, benches: Benches) -> LossBench:
    """What layers lose in each form, shared between ratios and choices of forms."""
    method = job.method
    shelf = job.cache.shelf("losses", **method.decomposition_of(method.storage), **job.source)
    forms = method.storage.menu
    return LossBench(job.model, job.layers, source, weighting, forms, benches, shelf, job.clock)


def blockwise_bench(job: Job, weighting: Weighting, ranks: Ranks) -> Workbench:
    """Decompositions under inputs that the compressed blocks produce; the groups must be asked for in order."""
    method = job.method
    statistics = BlockwiseStatistics(job.model, job.layers, job.windows, method.statistics(job.layers))
    shelf = job.cache.shelf("blockwise", method=method.described(), ranks=ranks, **job.source)
    how = weighting, method.numerics, method.storage
    return Workbench(job.model, job.layers, statistics, *how, shelf, job.clock, ranks)


def to_decompose(job: Job, bench: Workbench) -> Sequence[str]:
    """The groups that no run left on the shelf; of several processes, each is told its share, and of the windows."""
    processes = Processes()
    missing = processes.agree([group for group in job.groups if group not in bench.shelf])
    if missing and processes.count > 1 and isinstance(bench.source, DenseStatistics):
        with job.clock("calibration"):
            bench.source.prepare(processes)
    return processes.share(missing)


class Decomposed(NamedTuple):
    """What is known of the dense model's layers, whatever the ratio.

    Attributes:
        benches: their decompositions; none where the method looks at none.
        spectra: singular values of every L W R.
        losses: what the storage's forms lose, where an allocation chooses among them.
    """

    benches: Benches
    spectra: Mapping[str, Decomposition]
    losses: Mapping[str, Losses]


def decomposed(job: Job, benches: Benches, source: DenseStatistics) -> Decomposed:
    """What is known once every layer is decomposed."""
    method = job.method
    if not method.storage.menu:
        return Decomposed(benches, spectra(job, benches[method.storage.split]), {})
    if method.weighting is None or not method.allocation.needs_spectra:
        return Decomposed(benches, {}, {})
    return Decomposed(benches, {}, measured(job, loss_bench(job, method.weighting, source, benches)))


def spectra(job: Job, bench: Workbench) -> dict[str, Decomposition]:
    """Singular values of every layer's L W R, once all processes have left theirs on the shelf."""
    Processes().wait()
    return {name: part for group in job.groups for name, part in bench.spectra(group).items()}


def measured(job: Job, bench: LossBench) -> dict[str, Losses]:
    """The losses of every layer, each process measuring its share of the groups."""
    processes = Processes()
    missing = processes.agree([group for group in job.groups if bench.missing(group)])
    for group in progress(processes.share(missing), "losses of forms"):
        bench.measure(group)
    processes.wait()
    return {name: losses for group in job.groups for name, losses in bench.losses(group).items()}
