"""What a run takes on disk: what it leaves in the cache, its checkpoint, and what waits there while a stage lasts."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from svdexp.estimate.calibration import measures_dense, statistics_bytes, takes_gradients
from svdexp.estimate.stages import Stage, added_by_elastic, components_bytes, decompositions
from svdexp.estimate.table import gigabytes
from svdexp.method import Method
from svdexp.models.matrices import Matrix
from svdexp.models.work import Workload
from svdexp.runtime.disk import nearest_folder
from svdexp.schema import Save, Traversal
from svdexp.storage import NUMBER_BITS, Storage


def with_disk(
    rows: Iterable[Stage], workload: Workload, method: Method, *, save: Save, cached: bool, streamed: bool
) -> list[Stage]:
    """The rows, each with what the run has on disk when it ends or, where that is more, while it lasts.

    The arguments are those of `stages`.
    """
    kept = checkpoint_bytes(workload, save, streamed)
    if cached and method.weighting is not None:
        kept |= cache_bytes(workload, method)
    if cached:
        kept["storage"] = kept.get("storage", 0.0) + finished_bytes(workload, method.storage)
    passing = {"calibration": states_bytes(workload, method) if streamed and method.weighting else 0.0}
    found, held = [], 0.0
    for row in rows:
        held += kept.get(row.name, 0.0)
        found.append(replace(row, disk=held + passing.get(row.name, 0.0)))
    return found


def cache_bytes(workload: Workload, method: Method) -> dict[str, float]:
    """What stages leave in the cache: statistics, and decompositions in float32."""
    layers, found = workload.layers, {"calibration": 0.0, "factorisation": 0.0}
    if measures_dense(method):
        found["calibration"] += statistics_bytes(layers, method.statistics(layers), workload)
        found["factorisation"] += components_bytes(layers) * decompositions(method.storage)
    if method.traversal is Traversal.blockwise:
        found["factorisation"] += sum(4 * kept_components(workload, layer) * (layer.m + layer.n) for layer in layers)
    return found


def finished_bytes(workload: Workload, storage: Storage) -> float:
    """What blocks leave there that wait for the finished model; of several forms all might."""
    waits = storage.waits or any(form.storage.waits for form in storage.menu.values())
    return workload.kept_share * workload.entries * NUMBER_BITS / 8 if waits else 0.0


def kept_components(workload: Workload, layer: Matrix) -> int:
    """How many of a layer's are kept where its rank is known before."""
    rank = workload.ranks[layer.name]
    return min(layer.m, layer.n) if rank is None else rank


def checkpoint_bytes(workload: Workload, save: Save, streamed: bool) -> dict[str, float]:
    """What is saved, by the stage that writes it; a streamed run writes every block when it is truncated."""
    weights = float(workload.compressed_bytes)
    found = {"storage" if streamed else "save": weights if streamed or save is not Save.none else 0.0}
    if save is Save.elastic:
        found["save"] = found.get("save", 0.0) + added_by_elastic(workload)
    return found


def states_bytes(workload: Workload, method: Method) -> float:
    """Hidden states of all windows: those that enter and leave a block or, for gradients, enter all of them."""
    one = workload.tokens * workload.width * workload.itemsize
    backward = takes_gradients(method.statistics(workload.layers), workload)
    return float(one * (workload.blocks + 2 if backward else 2))


def shortage(needed: float, cache: str | None, run_dir: Path) -> str | None:
    """A sentence where the disk of the cache or, without one, of the run has less than `needed` bytes left."""
    knob, folder = ("cache", Path(cache)) if cache else ("hydra.run.dir", run_dir)
    free = shutil.disk_usage(nearest_folder(folder)).free
    if needed <= free:
        return None
    return (
        f"{knob}: the disk of {folder} has {gigabytes(free)} left, of which the run is estimated to take "
        f"{gigabytes(needed)}, less what earlier runs left there; make room, or name another folder with {knob}=FOLDER"
    )
