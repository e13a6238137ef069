"""What calibration costs: windows through the model, and the sums that they leave."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from svdexp.calibration.needs import Needs, by_layer, distinct, of_backward
from svdexp.calibration.statistics import (
    GRADIENT_STATISTICS,
    INPUT_GRADIENT_STATISTICS,
    INPUT_STATISTICS,
    OUTPUT_STATISTICS,
    Statistic,
)
from svdexp.data.windows import batch_windows
from svdexp.method import Method
from svdexp.models.matrices import Matrix
from svdexp.models.work import Work, Workload
from svdexp.schema import Traversal

META = torch.device("meta")


def calibration(workload: Workload, method: Method, streamed: bool = False) -> Work:
    """All windows through the model, and their statistics; `streamed`, those of one block at a time.

    Blockwise, every block runs twice, to measure and to move on, and one block's statistics are alive; where the
    allocation needs spectra, the dense model has been measured before.
    """
    needs = method.statistics(workload.layers)
    sums = statistics_flops(workload, needs)
    work = Work()
    if measures_dense(method):
        parts = by_group(workload.layers) if streamed else [workload.layers]
        alive = max(statistics_bytes(layers, needs, workload) for layers in parts)
        passes = swept(workload, needs) if streamed else dense_passes(workload, needs)
        work += replace(passes + Work(float32=sums), bytes=alive + passes.bytes)
    if method.traversal is Traversal.blockwise:
        alive = max(statistics_bytes(block, needs, workload) for block in by_group(workload.layers))
        # one window more shows which layers share an input, two record the blocks' arguments
        passes = workload.forward(2 * workload.windows + 3, head=False, compressed=True)
        work += replace(passes + Work(float32=sums), bytes=alive + passes.bytes)
    return work


def dense_passes(workload: Workload, needs: Needs) -> Work:
    """The windows through the dense model, with gradients one by one, else as many as a batch holds."""
    if takes_gradients(needs, workload):
        return workload.forward_backward(workload.windows)
    return workload.forward(workload.windows, batch=batch_of(workload), head=False)


def swept(workload: Workload, needs: Needs) -> Work:
    """The windows through a streamed model: forward, and for gradients once more, one by one, with the way back.

    In each block one window more shows which layers share an input; two record the blocks' arguments.
    """
    if takes_gradients(needs, workload):
        return workload.forward(workload.windows + 3, head=False) + workload.forward_backward(workload.windows)
    return workload.forward(workload.windows + 3, batch=batch_of(workload), head=False)


def takes_gradients(needs: Needs, workload: Workload) -> bool:
    """Whether a layer wants what a backward pass yields."""
    return bool(of_backward(distinct(by_layer(needs, workload.layers))))


def batch_of(workload: Workload) -> int:
    """How many windows go through the model in a batch where no gradients are taken."""
    return min(workload.windows, batch_windows(workload.length))


def statistics_flops(workload: Workload, needs: Needs) -> float:
    """FLOPs of all sums over the calibration tokens; layers with a common input share its statistics."""
    made = accumulators(workload.layers, needs, workload)
    per_token: float = sum(statistic.flops(*sizes) for statistic, sizes in made)
    return workload.tokens * per_token


def statistics_bytes(layers: Sequence[Matrix], needs: Needs, workload: Workload) -> float:
    """Of the statistics of `layers`; made on the meta device to see how large they are."""
    return sum(result_bytes(statistic, *sizes) for statistic, sizes in accumulators(layers, needs, workload))


def accumulators(layers: Sequence[Matrix], needs: Needs, workload: Workload) -> list[tuple[Any, tuple[int, ...]]]:
    """What sums the statistics of `layers`, and the sizes that it is made with; of a common input once."""
    asked = by_layer(needs, layers)
    shared = {(workload.leaders[x.name], need): x.n for x in layers for need in asked[x.name]}
    found: list[tuple[Any, tuple[int, ...]]] = [
        (INPUT_STATISTICS[need], (n,)) for (_, need), n in shared.items() if need in INPUT_STATISTICS
    ]
    for layer in layers:
        for need in asked[layer.name]:
            if need in OUTPUT_STATISTICS:
                found.append((OUTPUT_STATISTICS[need], (layer.m,)))
            elif need in GRADIENT_STATISTICS:
                found.append((GRADIENT_STATISTICS[need], (layer.m, layer.n)))
            elif need in INPUT_GRADIENT_STATISTICS:
                found.append((INPUT_GRADIENT_STATISTICS[need], (layer.n,)))
    return found


@cache
def result_bytes(statistic: Callable[..., Statistic], *sizes: int) -> int:
    """Of one statistic of a layer with these sizes; a model has few, and even without memory a result takes a while."""
    return statistic(*sizes, META).result().nbytes


def measures_dense(method: Method) -> bool:
    """Whether the dense model's statistics are taken: for its factors, or only for the allocation."""
    return method.traversal is Traversal.dense or method.allocation.needs_spectra


def by_group(layers: Sequence[Matrix]) -> list[list[Matrix]]:
    """The layers of each block."""
    groups: dict[str, list[Matrix]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    return list(groups.values())
