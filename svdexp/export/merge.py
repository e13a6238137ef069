"""A compressed model as a dense one of the original architecture, for tools that know no low rank."""

from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of, empty_model, unlabel
from svdexp.models.matrices import matrices_in


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Replace every layer that `svdexp.load` put into `model` by a dense one of W', in place.

    W' is computed in float32, then rounded to the model's format.
    """
    config, dtype = model.config, model.dtype
    skeleton = empty_model(architecture_of(model), config)
    for matrix in matrices_in(skeleton):
        if matrix.name in config.svdexp["layers"]:
            layer: Any = matrix.layer(model).float()
            bias = None if layer.bias is None else layer.bias.to(dtype)
            matrix.put(model, matrix.filled(skeleton, layer.weight.to(dtype), bias))
    unlabel(model)
