"""What calibration costs: windows through the model, and the sums that they leave."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from svdexp.calibration import GRADIENT_STATISTICS, INPUT_STATISTICS
from svdexp.calibration.collector import needs_of_gradients, needs_of_inputs
from svdexp.calibration.statistics import Statistic
from svdexp.data.windows import TOKENS_PER_BATCH
from svdexp.factorisation import Weighting
from svdexp.method import Method
from svdexp.models.matrices import Matrix
from svdexp.models.work import Work, Workload
from svdexp.schema import Traversal

META = torch.device("meta")


def calibration(workload: Workload, method: Method, weighting: Weighting, streamed: bool = False) -> Work:
    """All windows through the model, and their statistics; `streamed`, those of one block at a time.

    Blockwise, every block runs twice, to measure and to move on, and one block's statistics are alive; where the
    allocation needs spectra, the dense model has been measured before.
    """
    needs = weighting.needs
    sums = statistics_flops(workload, needs)
    work = Work()
    if measures_dense(method):
        together = by_group(workload.layers) if streamed else [workload.layers]
        alive = max(statistics_bytes(layers, needs, workload) for layers in together)
        passes = swept(workload, needs) if streamed else dense_passes(workload, needs)
        work += replace(passes + Work(float32=sums), bytes=alive + passes.bytes)
    if method.traversal is Traversal.blockwise:
        alive = max(statistics_bytes(block, needs, workload) for block in by_group(workload.layers))
        # one window more shows which layers share an input, two record the blocks' arguments
        passes = workload.forward(2 * workload.windows + 3, head=False, compressed=True)
        work += replace(passes + Work(float32=sums), bytes=alive + passes.bytes)
    return work


def dense_passes(workload: Workload, needs: Sequence[str]) -> Work:
    """The windows through the dense model, with gradients one by one, else as many as a batch holds."""
    if needs_of_gradients(needs):
        return workload.forward_backward(workload.windows)
    batch = min(workload.windows, max(1, TOKENS_PER_BATCH // workload.length))
    return workload.forward(workload.windows, batch=batch, head=False)


def swept(workload: Workload, needs: Sequence[str]) -> Work:
    """The windows through a streamed model, one by one: forward, and for gradients once more, with the way back.

    In each block one window more shows which layers share an input; two record the blocks' arguments.
    """
    forward = workload.forward(workload.windows + 3, head=False)
    return forward + workload.forward_backward(workload.windows) if needs_of_gradients(needs) else forward


def statistics_flops(workload: Workload, needs: Sequence[str]) -> float:
    """FLOPs of all sums over the calibration tokens; layers with a common input share its statistics."""
    inputs, gradients = needs_of_inputs(needs), needs_of_gradients(needs)
    per_token = sum(INPUT_STATISTICS[need].flops(n) for need in inputs for n in workload.inputs.values())
    per_token += sum(GRADIENT_STATISTICS[need].flops(x.m, x.n) for need in gradients for x in workload.layers)
    return workload.tokens * per_token


def statistics_bytes(layers: Sequence[Matrix], needs: Sequence[str], workload: Workload) -> float:
    """Of the statistics of `layers`; made on the meta device to see how large they are."""
    inputs = {workload.leaders[layer.name]: layer.n for layer in layers}
    of_inputs = [result_bytes(INPUT_STATISTICS[need], n) for need in needs_of_inputs(needs) for n in inputs.values()]
    gradients = needs_of_gradients(needs)
    of_gradients = [result_bytes(GRADIENT_STATISTICS[need], x.m, x.n) for need in gradients for x in layers]
    return sum(of_inputs) + sum(of_gradients)


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
