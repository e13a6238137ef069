"""The steps of one compression that change the model. What a step finds it returns; a job stays as it was begun."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from svdexp.checkpoints.elastic import components
from svdexp.data.reads import described
from svdexp.engine.benches import Benches
from svdexp.engine.job import Job
from svdexp.factorisation import Decomposition
from svdexp.models.factors import Factors, factors_of, low_rank_layer
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.matrices import Matrix, Ranks, layers_of
from svdexp.models.residency import at_hand
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf
from svdexp.storage import Kept, Storage, bits_of, largest_rank, parts_of, stored_bits
from svdexp.training import Student, Trained, Training, learner, teach, with_text
from svdexp.update import Repair, place_all


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
    if method.trains_factors:
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
        if job.method.trains_factors:
            # float32 to be trained, but in a block of another format only that format runs
            layer: nn.Module = low_rank_layer(factors, bias, W if job.method.follows_compressed else W.float())
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
    """Gradient descent on the plain factors in place of `dense`, which are then put into the method's storage."""
    for matrix in dense if job.method.follows_compressed else ():
        matrix.put(job.model, matrix.layer(job.model).float())
    student = Student(job.model, dense, job.teacher)
    trained = taught(job, student, ranks, job.method.trains_factors)
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


def train_stored(job: Job, ranks: Ranks, dense: Mapping[Matrix, nn.Module]) -> dict[str, Trained]:
    """Gradient descent on what was stored in place of `dense`, which is then stored as it was trained."""
    student = Student(job.model, {matrix: dense[matrix] for matrix in dense if not matrix.is_dense(job.model)})
    learners = {matrix: learner(matrix.layer(job.model)) for matrix in student.dense}
    changed = {matrix: found for matrix, found in learners.items() if found is not None}
    for matrix, found in changed.items():
        matrix.put(job.model, found)
    after = [with_text(part, job.texts.get(name)) for name, part in job.method.trains_factors.items()]
    storages = {name: described(storage) for name, storage in job.storages.items()}
    trained = taught(job, student, ranks, job.method.trains_stored, after=after, storages=storages)
    for matrix, found in changed.items():
        matrix.put(job.model, found.stored())
    return trained


def taught(
    job: Job, student: Student, ranks: Ranks, trainings: Mapping[str, Training], **about: Any
) -> dict[str, Trained]:
    """What became of `trainings`; `about` is what their results depend on beside method, ranks and seed."""
    known = {"method": replace_fields(job.method, training={}).described(), "ranks": ranks, "seed": job.seed}
    shelf = partial(job.cache.shelf, "training", **known, **about, source=job.source)
    with job.clock("training"):
        return teach(student, trainings, job.windows, job.texts, shelf, job.seed)


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
    kinds: dict[type[Storage], None] = dict.fromkeys(type(storage) for storage in storages.values() if storage.waits)
    for kind in kinds:
        mine = {matrix: storage for matrix, storage in storages.items() if type(storage) is kind}
        kind.finish(job.model, mine, job.windows, finished_blocks(job, mine))


def finished_blocks(job: Job, storages: Mapping[Matrix, Storage]) -> Shelf:
    """Where the blocks of the model as it stands are left when its layers have these `storages`.

    However it came about, its weights say what becomes of it.
    """
    if job.cache.folder is None:  # which spares the hash
        return Shelf()
    how = {matrix.name: described(storage) for matrix, storage in storages.items()}
    return job.cache.shelf("finished", model=model_fingerprint(job.model), windows=job.source["windows"], storages=how)


def stored(job: Job) -> dict[str, int]:
    """The bits of every layer as it stands, and its part of what it holds together with others."""
    found = {name: stored_bits(layer) for name, layer in layers_of(job.model, job.layers).items()}
    shared = parts_of(job.layers, lambda members: bits_of(members[0].beside(job.model)))
    return {name: own + shared.get(name, 0) for name, own in found.items()}
