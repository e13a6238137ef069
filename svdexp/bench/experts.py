"""A layer of experts in factors, or pivots, against the dense one, as transformers runs it."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from svdexp.bench.layers import layer
from svdexp.bench.timing import Row, speedup
from svdexp.models.matrices import matrices_in

EXPERTS, CHOSEN, HIDDEN = 32, 4, 512
KEPT = 0.4
STORAGES = ("factors", "pivot")
TOKENS = {"prefill 1024": 1024, "prefill 64": 64, "decode 1": 1}


def dense(dtype: torch.dtype, hidden: int = HIDDEN) -> nn.ModuleDict:
    """Experts whose gate and up projection is of shape (2 · hidden, hidden)."""
    config: Any = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=hidden, num_experts=EXPERTS, num_experts_per_tok=CHOSEN
    )
    config._experts_implementation = "grouped_mm"
    build: Any = Qwen3MoeExperts
    experts: nn.Module = build(config).requires_grad_(False)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=hidden**-0.5)
    return nn.ModuleDict({"experts": experts.to(dtype)})


def compressed(model: nn.ModuleDict, storage: str = "factors") -> nn.ModuleDict:
    """The same in a storage that takes KEPT of its numbers; what they compute does not matter."""
    model = copy.deepcopy(model)
    for matrix in matrices_in(model):
        W = matrix.weight(model)
        made = layer(storage, matrix.m, matrix.n, KEPT).to(W.dtype).requires_grad_(False)
        for weight in made.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        matrix.put(model, made)
    return model


def given(tokens: int, dtype: torch.dtype, hidden: int = HIDDEN) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the experts that each token chooses, and their weights."""
    weights, chosen = torch.randn(tokens, EXPERTS).softmax(-1).topk(CHOSEN)
    return torch.randn(tokens, hidden).to(dtype), chosen, weights.to(dtype)


def rows() -> Iterator[Row]:
    """Every comparison."""
    for dtype in (torch.float32, torch.bfloat16):
        plain = dense(dtype)
        for storage in STORAGES:
            ours = compressed(plain, storage)
            for what, tokens in TOKENS.items():
                arguments = given(tokens, dtype)
                with torch.no_grad():
                    ratio = speedup(partial(ours["experts"], *arguments), partial(plain["experts"], *arguments))
                name = f"{storage}, {what}, kept {KEPT}, {str(dtype).removeprefix('torch.')}"
                yield Row(f"{EXPERTS} experts in {name}", "dense experts", "(1024, 512)", ratio)
