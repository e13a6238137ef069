"""Factor pairs for vLLM, which loads parameters only: no pivots' order and no codes."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.architectures import sees_images
from svdexp.checkpoints.checkpoint import architecture_of, empty_model, label
from svdexp.checkpoints.together import say_together
from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.matrices import Ranks, matrices_in
from svdexp.runtime.errors import require

log = logging.getLogger(__name__)


@torch.no_grad()
def factor_pairs(model: PreTrainedModel) -> None:
    """Let every layer that `svdexp.load` put into `model` be a pair of factors of the same product, in place.

    Where a pair would take as many numbers as the dense matrix, as of pivots with a large rank, that one is put there,
    and so it is for a head, in whose place vLLM puts its own.

    Raises:
        UserError: a layer is no pair, or an expert's, or the model reads images.
    """
    config, dtype = model.config, model.dtype
    require(not sees_images(config), "format=vllm is for models of text alone: vLLM with images was not run")
    table = config.svdexp["layers"]
    skeleton = empty_model(architecture_of(model), config)
    found = [matrix for matrix in matrices_in(skeleton) if matrix.name in table]
    for matrix in found:
        require(not matrix.rivals, f"format=vllm has no experts, but {matrix.name} is one's: use format=dense")
        layer: Any = matrix.layer(model)
        what = f"{matrix.name} is kept as {table[matrix.name]['storage']}"
        require(layer.pair_shape is not None, f"format=vllm has pairs of factors alone, but {what}: use format=dense")
    ranks: Ranks = {}
    for matrix in found:
        layer = matrix.layer(model)
        (rank, _), bias = layer.pair_shape, layer.bias
        inside = matrix.name.startswith(f"{model.base_model_prefix}.")
        if inside and rank * (matrix.m + matrix.n) < matrix.m * matrix.n:
            ranks[matrix.name] = rank
            matrix.put(model, low_rank_layer(factors(layer, matrix.n), bias, torch.empty(0, dtype=dtype)))
        else:
            W = layer.float().weight.to(dtype)
            matrix.put(model, matrix.filled(skeleton, W, None if bias is None else bias.to(dtype)))
    require(bool(ranks), "format=vllm: no layer is smaller as a pair of factors than dense, so use format=dense")
    if len(ranks) < len(found):
        left = len(found) - len(ranks)
        log.info("%d of %d layers become dense: their factors are not smaller, or it is the head", left, len(found))
    label(model, ranks)
    say_together(model)


def factors(layer: Any, n: int) -> Factors:
    """A and B of a layer that goes by way of r numbers: what it makes of each of its inputs. It is cast meanwhile."""
    B = layer.float().latent(torch.eye(n)).T
    A = layer.double().rebuilt(torch.eye(len(B), dtype=torch.float64)).T  # wide enough to take the bias off again
    return Factors(A if layer.bias is None else A - layer.bias[:, None], B)
