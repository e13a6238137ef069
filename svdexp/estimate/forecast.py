"""The estimate of one run, as text."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from svdexp.estimate.anatomy import workload_of
from svdexp.estimate.speed import measure_speed
from svdexp.estimate.stages import stages
from svdexp.estimate.table import render
from svdexp.method import Method
from svdexp.models.structure import Layer
from svdexp.schema import Config, Save


def forecast(
    config: Config,
    method: Method,
    model: PreTrainedModel,
    layers: Sequence[Layer],
    texts: Sequence[int],
    device: torch.device,
) -> str:
    """What the run will take on `device`.

    `model` may be on the meta device; `texts` are the numbers of windows that each text is evaluated on.
    """
    part = config.calibration
    workload = workload_of(model, layers, ratio=config.ratio, windows=part.samples, length=part.seq_len)
    rows = stages(
        workload, method, config.eval, texts, save=config.save is not Save.none, cached=config.cache is not None
    )
    name = str(model.dtype).removeprefix("torch.")
    return render(rows, measure_speed(device, model.dtype), f"{config.model.name}, {method.name}, {name} on {device}")
