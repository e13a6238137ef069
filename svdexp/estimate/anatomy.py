"""The numbers of a model that costs depend on, from its modules; the weights are not looked at."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import PreTrainedModel

from svdexp.allocation import Budget
from svdexp.calibration.collector import shared_inputs
from svdexp.models.matrices import Matrix, Ranks, layers_of, matrices_in
from svdexp.models.structure import find_blocks, stored_bytes
from svdexp.models.work import Workload


def workload_of(
    model: PreTrainedModel, layers: Sequence[Matrix], budget: Budget, ranks: Ranks, *, windows: int, length: int
) -> Workload:
    """What compressing `layers` of `model`, which may be on the meta device, works on.

    `ranks` are what they are expected to get of `budget`. Mixtures of experts count as if every token went through all
    of them: an upper bound.
    """
    prefix, blocks = find_blocks(model)
    inside = {matrix.name: matrix for matrix in matrices_in(blocks, prefix)}
    leaders = input_leaders(model, list(inside.values()))
    body = entries(blocks)
    embedding: Any = model.get_input_embeddings()
    vocabulary, width = embedding.weight.shape
    return Workload(
        layers=tuple(layers),
        leaders={layer.name: leaders.get(layer.name, layer.name) for layer in layers},
        blocks=len(blocks),
        width=width,
        vocabulary=vocabulary,
        body=body,
        head=entries(model) - body,
        stored=sum(x.m for x in inside.values()) + sum(inside[leader].n for leader in set(leaders.values())),
        itemsize=model.dtype.itemsize,
        model_bytes=stored_bytes(model),
        windows=windows,
        length=length,
        ranks=ranks,
        kept_entries=sum(multiplied(layer, ranks[layer.name], budget) for layer in layers),
        kept_share=budget.expected(ranks) / sum(map(budget.dense, budget.shapes)),
    )


def multiplied(layer: Matrix, rank: int | None, budget: Budget) -> int:
    """Entries of the matrices by which `layer` multiplies a token at `rank`."""
    whole = layer.m * layer.n
    if rank is None:
        return whole
    shared = whole if budget.beside.get(layer.name) else 0
    return shared + budget.storage.multiplied(rank, layer.m, layer.n)


def entries(module: nn.Module) -> int:
    """Entries of all matrices in `module` that multiply; an embedding is looked up, unless the head is tied to it."""
    return sum(
        parameter.numel()
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
        if parameter.ndim >= 2
    )


@torch.no_grad()
def input_leaders(model: PreTrainedModel, matrices: Sequence[Matrix]) -> dict[str, str]:
    """For each of the matrices' layers the first one fed by the same tensor, from a short forward pass.

    Without weights it runs on shapes alone: models look at values, for instance of masks, which a meta tensor
    refuses; torch's fake tensors stand for any value. Where shapes depend on values, as of a loop over the experts that
    tokens chose, the pass ends, and layers behind it count as fed by tensors of their own: an upper bound.
    """
    body: Any = model.base_model
    shapes_only: AbstractContextManager[Any] = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes_only if model.device.type == "meta" else nullcontext():
        tokens = torch.zeros(1, 16, dtype=torch.int64, device=model.device)
        return shared_inputs(layers_of(model, matrices), partial(_as_far_as_shapes_go, body, tokens))


def _as_far_as_shapes_go(body: Any, tokens: torch.Tensor) -> None:
    with suppress(DynamicOutputShapeException, DataDependentOutputException):
        body(tokens, use_cache=False)
