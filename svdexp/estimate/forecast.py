"""The estimate of one run, as text."""

from collections.abc import Sequence
from dataclasses import replace

import psutil
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget, expected_ranks
from svdexp.estimate.anatomy import workload_of
from svdexp.estimate.speed import measure_speed
from svdexp.estimate.stages import stages
from svdexp.estimate.table import render
from svdexp.method import Method
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.structure import stored_bytes
from svdexp.schema import Config


def forecast(
    config: Config,
    method: Method,
    model: PreTrainedModel,
    layers: Sequence[Matrix],
    budget: Budget,
    fixed: Ranks,
    texts: Sequence[int],
    device: torch.device,
) -> str:
    """What the run will take on `device`.

    `model` may be on the meta device; `budget` and `fixed` are the plan's; `texts` are the numbers of windows that each
    text is evaluated on.
    """
    beside = beside_tensors(model, device)
    part = config.calibration
    ranks = expected_ranks(method.allocation, budget, fixed)
    workload = workload_of(model, layers, budget, ranks, windows=part.samples, length=part.seq_len)
    rows = stages(workload, method, config.eval, texts, save=config.save, cached=config.cache is not None)
    rows = [replace(row, bytes=row.bytes + beside) for row in rows]
    name = str(model.dtype).removeprefix("torch.")
    what = f"{config.model.name}, {method.name}, {name} on {device}"
    return render(rows, measure_speed(device, model.dtype), what, beside)


def beside_tensors(model: PreTrainedModel, device: torch.device) -> int:
    """The bytes that Python and its libraries take of the memory that the model is in; none of a GPU's.

    Measured: what this process holds now, less the weights.
    """
    if device.type != "cpu":
        return 0
    weights = 0 if model.device.type == "meta" else stored_bytes(model)
    held: int = psutil.Process().memory_info().rss
    return max(0, held - weights)
