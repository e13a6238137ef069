"""Tiny models with every linear layer of the blocks replaced by a truncated one, without calibration."""

import torch
from transformers import PreTrainedModel

from svdexp.models.factors import Factors
from svdexp.models.structure import Targets, find_matrices
from svdexp.storage import Storage
from tests.conftest import tiny_model

RANKS = (5, 9, 12)  # in turn, so that neighbours differ


@torch.no_grad()
def shrunk(name: str, storage: Storage, dtype: torch.dtype = torch.bfloat16) -> tuple[PreTrainedModel, dict[str, int]]:
    """The model, in `dtype`, and the ranks of its layers."""
    model = tiny_model(name)
    for parameter in model.parameters():  # not model.to(dtype), which would round rotary buffers too
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    ranks = {}
    for index, matrix in enumerate(find_matrices(model, Targets())):
        W, rank = matrix.weight(model), RANKS[index % len(RANKS)]
        matrix.put(model, storage.layer(truncated(W, rank), matrix.bias(model), W))
        ranks[matrix.name] = rank
    return model, ranks


def truncated(W: torch.Tensor, rank: int) -> Factors:
    """The first `rank` components of W (m, n)."""
    U, S, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    return Factors(U[:, :rank] * S[:rank], Vt[:rank])
