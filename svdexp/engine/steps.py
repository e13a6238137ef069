"""The steps of one compression. What a step finds it returns; a job stays as it was begun."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Evidence, RankCurves, allocate, measure
from svdexp.calibration import BlockwiseStatistics, DenseStatistics
from svdexp.checkpoints.elastic import components
from svdexp.data.reads import described
from svdexp.engine.identity import source_of, statistics_in
from svdexp.engine.losses import LossBench, Losses
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Decomposition, Weighting
from svdexp.method import Method
from svdexp.models.factors import Factors, factors_of, low_rank_layer
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.matrices import Matrix, Ranks, layers_of
from svdexp.models.residency import at_hand, twin
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Cache, shelf_folder
from svdexp.schema import Traversal
from svdexp.storage import Kept, Storage, largest_rank, stored_bits
from svdexp.training import Student, Trained, teach
from svdexp.update import Repair, place_all

# Decompositions, by what storages split off of W before.
Benches = Mapping[str | None, Workbench]


@dataclass(frozen=True)
class Job:
    """One call of `compress`: the model, and what is to be done to it.

    Attributes:
        source: what every result depends on, taken while the model is dense.
        teacher: the dense model, where trainings need it and `model` is streamed.
        storages: of each layer, where the allocation chose that; the method's says which there are.
    """

    model: PreTrainedModel
    windows: torch.Tensor
    method: Method
    layers: Sequence[Matrix]
    cache: Cache
    clock: StageClock
    seed: int
    texts: Mapping[str, torch.Tensor]
    elastic: bool
    source: Mapping[str, Any]
    teacher: PreTrainedModel | None
    storages: Mapping[str, Storage] = field(default_factory=dict)

    def storage(self, name: str) -> Storage:
        """What keeps the layer called `name`."""
        return self.storages.get(name, self.method.storage)

    def choosing(self, forms: Mapping[str, str]) -> "Job":
        """The job once layers have `forms`, by their words."""
        menu = self.method.storage.menu
        return replace_fields(self, storages={name: menu[word].storage for name, word in forms.items()})

    @property
    def groups(self) -> list[str]:
        """The groups of the layers, in the model's order."""
        return list(dict.fromkeys(layer.group for layer in self.layers))

    def of(self, group: str) -> list[Matrix]:
        """The layers of a group."""
        return [layer for layer in self.layers if layer.group == group]


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


class Truncated(NamedTuple):
    """What truncation found.

    Attributes:
        spectra: of every layer, without components; empty where there is no weighting.
        dense: the layers whose factors shall be trained, as they were.
        components: by layer, what an elastic checkpoint adds.
    """

    spectra: dict[str, Decomposition]
    dense: dict[Matrix, nn.Module]
    components: dict[str, dict[str, torch.Tensor]]


def begin(
    model: PreTrainedModel,
    windows: torch.Tensor,
    method: Method,
    layers: Sequence[Matrix],
    cache: Cache,
    clock: StageClock,
    seed: int,
    texts: Mapping[str, torch.Tensor],
    elastic: bool,
    weights: str | None,
) -> Job:
    """The job, while the model is dense; `weights` is its fingerprint, if that is known.

    Raises:
        UserError: several processes have no cache that they can share.
    """
    if Processes().count > 1 and cache.folder is None:
        raise UserError("cache=null keeps finished stages in memory, but processes share files; set cache=FOLDER")
    if Processes().count > 1 and not cache.may_write():
        raise UserError(f"cache={cache.folder} cannot be written, but processes share files there; set cache=FOLDER")
    source = source_of(weights or model_fingerprint(model), windows, layers)
    teacher = twin(model) if method.training else None
    return Job(model, windows, method, layers, cache, clock, seed, texts, elastic, source, teacher)


def states_folder(job: Job) -> Path | None:
    """Where states of the dense model wait, should it be a streamed one; None: there is no cache."""
    return job.cache.folder and shelf_folder(job.cache.folder, "states", **job.source)


def dense_statistics(job: Job) -> DenseStatistics:
    """The dense model's statistics, of which each is shared between all methods that want it of the same layers."""
    needs = job.method.statistics(job.layers)
    shelves = {
        need: job.cache.shelf("statistics", **about, **job.source) for need, about in statistics_in(needs).items()
    }
    return DenseStatistics(job.model, job.layers, job.windows, shelves, states_folder(job), needs)


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


def measured(job: Job, bench: LossBench) -> dict[str, Losses]:
    """The losses of every layer, each process measuring its share of the groups."""
    processes = Processes()
    missing = processes.agree([group for group in job.groups if bench.missing(group)])
    for group in progress(processes.share(missing), "losses of forms"):
        bench.measure(group)
    processes.wait()
    return {name: losses for group in job.groups for name, losses in bench.losses(group).items()}


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


def spectra(job: Job, bench: Workbench) -> dict[str, Decomposition]:
    """Singular values of every layer's L W R, once all processes have left theirs on the shelf."""
    Processes().wait()
    return {name: part for group in job.groups for name, part in bench.spectra(group).items()}


def evidence(
    job: Job,
    bench: Workbench | None,
    found: Mapping[str, Decomposition],
    losses: Mapping[str, Losses] = MappingProxyType({}),
) -> Evidence:
    """What the allocation may look at."""
    method = job.method
    made_with = {
        "weighting": described(method.weighting),
        "numerics": method.numerics,
        "storage": described(method.storage),
    }
    matrices = {matrix.name: matrix for matrix in job.layers}

    @lru_cache(maxsize=1)  # one layer is tried out at several ranks
    def decomposition(name: str) -> Decomposition:
        assert bench is not None, "an allocation that builds layers must set needs_spectra"
        return bench.decompositions(matrices[name].group, [name])[name]

    def truncated(name: str, rank: int) -> nn.Module:
        factors, matrix = decomposition(name).truncate(rank, method.sigma_fuse), matrices[name]
        kept = bench.kept(matrix.group, name) if bench else None
        return method.storage.layer(factors, matrix.bias(job.model), matrix.weight(job.model), kept)

    shelf = partial(job.cache.shelf, source=job.source)
    values = {name: part.spectrum for name, part in found.items()}
    return Evidence(job.model, job.windows, values, truncated, made_with, shelf, job.seed, losses)


def decomposed(job: Job, benches: Benches, source: DenseStatistics) -> Decomposed:
    """What is known once every layer is decomposed."""
    method = job.method
    if not method.storage.menu:
        return Decomposed(benches, spectra(job, benches[method.storage.split]), {})
    if method.weighting is None or not method.allocation.needs_spectra:
        return Decomposed(benches, {}, {})
    return Decomposed(benches, {}, measured(job, loss_bench(job, method.weighting, source, benches)))


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


@contextmanager
def dense_again(job: Job) -> Iterator[None]:
    """After this context every layer is the one that it was before."""
    before = layers_of(job.model, job.layers)
    try:
        yield
    finally:
        for matrix in job.layers:
            matrix.put(job.model, before[matrix.name])


def truncate(job: Job, benches: Benches, ranks: Ranks, known: Mapping[str, Decomposition]) -> Truncated:
    """Replace every layer that has a rank, block by block, repairing each block as the method says.

    Components are read of these layers alone, and spectra only where they are not `known`.
    """
    update = job.method.update
    with job.clock("update" if update else "storage"):
        repair = update.start(job.model, job.layers, job.windows, ranks) if update else place_all
    done = Truncated(dict(known), {}, {})
    for group in progress(job.groups, "truncation"):
        with at_hand(job.model, group, changes=True):
            truncate_group(job, group, benches, ranks, repair, done)
    return done


def truncate_group(job: Job, group: str, benches: Benches, ranks: Ranks, repair: Repair, done: Truncated) -> None:
    """`truncate` of one group; what is found goes into `done`, spectra where they are not there."""
    method = job.method
    members = [matrix for matrix in job.of(group) if ranks[matrix.name] is not None]
    read = [matrix.name for matrix in (job.of(group) if job.elastic else members)]
    parts, kept = dict[str, Decomposition](), dict[str, Kept | None]()
    for split, bench in benches.items():
        mine = [name for name in read if job.storage(name).split == split]
        parts |= bench.decompositions(group, mine) if mine else {}
        kept |= {name: bench.kept(group, name) for name in mine}
        if not job.storages and not all(matrix.name in done.spectra for matrix in job.of(group)):
            done.spectra.update(bench.spectra(group))
    done.components.update(extra_components(job, group, parts, ranks) if job.elastic else {})
    dense = {matrix: matrix.layer(job.model) for matrix in members}
    factors = {
        name: part.truncate(rank, method.sigma_fuse)
        for name, part in parts.items()
        if (rank := ranks[name]) is not None
    }
    targets = {
        matrix.name: job.storage(matrix.name).target(matrix.weight(job.model), kept=kept.get(matrix.name))[0]
        for matrix in members
    }
    with job.clock("update" if method.update else "storage"):
        repair(group, targets, factors, partial(place, job, dense, kept))
    if method.training:
        done.dense.update({matrix: matrix.layer(job.teacher) for matrix in dense} if job.teacher else dense)


def place(
    job: Job,
    dense: Mapping[Matrix, nn.Module],
    kept: Mapping[str, Kept | None],
    name: str,
    factors: Factors,
    *,
    trial: bool = False,
) -> None:
    """Put factors in the place of the layer called `name`, one of those in `dense`; on `trial`, as plain ones.

    `kept` is what storages keep beside factors, by layer.
    """
    with job.clock("storage"):
        matrix = next(matrix for matrix in dense if matrix.name == name)
        W, bias = matrix.family.weight(dense[matrix]), matrix.family.bias(dense[matrix])
        if job.method.training:
            layer: nn.Module = low_rank_layer(factors, bias, W.float())
        else:
            layer = stored_layer(job.storage(name), factors, bias, W, kept.get(name), trial=trial)
        matrix.put(job.model, layer)


def stored_layer(
    storage: Storage,
    factors: Factors,
    bias: torch.Tensor | None,
    W: torch.Tensor,
    kept: Kept | None,
    *,
    trial: bool = False,
) -> nn.Module:
    """The layer that is stored in place of W (m, n), or plain factors while storage waits for the model.

    On `trial` they are plain as well, unless the storage keeps something beside them.
    """
    plain = storage.waits or (trial and kept is None)
    return low_rank_layer(factors, bias, W) if plain else storage.layer(factors, bias, W, kept)


def extra_components(
    job: Job, group: str, parts: Mapping[str, Decomposition], ranks: Ranks
) -> dict[str, dict[str, torch.Tensor]]:
    """What an elastic checkpoint adds, for the layers of `group`."""
    found = {}
    for matrix in job.of(group):
        W, part = matrix.weight(job.model), parts[matrix.name]
        factors = part.truncate(largest_rank(*W.shape), job.method.sigma_fuse)
        found[matrix.name] = components(factors, part.spectrum, W, ranks[matrix.name])
    return found


def train(job: Job, ranks: Ranks, dense: Mapping[Matrix, nn.Module]) -> dict[str, Trained]:
    """Gradient descent on the factors in place of `dense`, which are then put into the method's storage."""
    student = Student(job.model, dense, job.teacher)
    about = {"method": replace_fields(job.method, training={}).described(), "ranks": ranks, "seed": job.seed}
    shelf = partial(job.cache.shelf, "training", **about, source=job.source)
    with job.clock("training"):
        trained = teach(student, job.method.training, job.windows, job.texts, shelf, job.seed)
    with job.clock("storage"):
        compressed = student.layers
        trained_in = {matrix.group: [x for x in dense if x.group == matrix.group] for matrix in dense}
        for group, members in trained_in.items():
            with at_hand(job.model, group, changes=True), at_hand(job.teacher or job.model, group):
                for matrix in (matrix for matrix in members if matrix.name in compressed):
                    layer, W = compressed[matrix.name], matrix.family.weight(dense[matrix])
                    plain = factors_of(layer)
                    matrix.put(job.model, stored_layer(job.method.storage, plain, layer.rank_out.bias, W, None))
    return trained


def finish(job: Job, ranks: Ranks) -> None:
    """What storage does when all factors stand: matrices without, and what waits for the finished model."""
    left = [matrix for matrix in job.layers if ranks[matrix.name] is None]
    for group in dict.fromkeys(matrix.group for matrix in left):
        with at_hand(job.model, group, changes=True):
            for matrix in (matrix for matrix in left if matrix.group == group):
                whole = job.storage(matrix.name).whole(matrix.weight(job.model), matrix.bias(job.model))
                if whole is not None:
                    matrix.put(job.model, whole)
    storages = {matrix: job.storage(matrix.name) for matrix in job.layers}
    kinds: dict[type[Storage], None] = dict.fromkeys(type(storage) for storage in storages.values())
    for kind in kinds:
        mine = {matrix: storage for matrix, storage in storages.items() if type(storage) is kind}
        kind.finish(job.model, mine, job.windows)


def stored(job: Job) -> dict[str, int]:
    """The bits of every layer as it stands."""
    return {name: stored_bits(layer) for name, layer in layers_of(job.model, job.layers).items()}
