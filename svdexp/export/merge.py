"""A compressed model as a dense one of the original architecture, for tools that know no low rank."""

from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of, empty_model, unlabel
from svdexp.models.structure import filled_dense, replace


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Replace every layer that `svdexp.load` put into `model` by a dense one of W', in place.

    W' is computed in float32, then rounded to the model's format.
    """
    config, dtype = model.config, model.dtype
    skeleton = empty_model(architecture_of(model), config)
    for name in config.svdexp["layers"]:
        layer: Any = model.get_submodule(name).float()
        bias = None if layer.bias is None else layer.bias.to(dtype)
        replace(model, name, filled_dense(skeleton.get_submodule(name), layer.weight.to(dtype), bias))
    unlabel(model)
