"""Whole models of random weights against themselves compressed: what a user of the factors gains.

A single layer may sit in a processor's cache; a stack of wide blocks does not, and a small model shows what calling
twice as many layers costs.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from svdexp.bench.layers import KEPT, layer
from svdexp.bench.timing import Row, speedup
from svdexp.models.factors import Factors
from svdexp.models.structure import Targets, find_matrices
from svdexp.storage import ResidualStorage, RTNStorage
from svdexp.storage.residual import Rounding

PROMPT, GENERATED = 256, 16

# Blocks of SmolLM2-135M's shape; four of them for what only counts per block.
SMALL = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=1024,
    tie_word_embeddings=True,
)
DEMO = LlamaConfig(**SMALL.to_diff_dict() | {"num_hidden_layers": 30, "vocab_size": 49152})
WIDE = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=1024,
    tie_word_embeddings=True,
)
# Of whole matrices; and behind a plus the rank of a correction.
CODES = {"int8": RTNStorage(8, None), "int4": RTNStorage(4, 32)}
CORRECTED = {"int4+16": ResidualStorage(4, 32, rounding=Rounding.nearest)}
STACKS = {"SmolLM2-135M's shape": DEMO, "4 blocks of hidden size 2048": WIDE}


def random_model(config: LlamaConfig) -> PreTrainedModel:
    """A model with random weights."""
    model: PreTrainedModel = LlamaForCausalLM(config)
    model.train(False).requires_grad_(False)
    return model


def compressed(config: LlamaConfig, storage: str, kept: float, align: int = 1) -> PreTrainedModel:
    """A model whose layers all keep the same share, their ranks multiples of `align`."""
    model = random_model(config)
    for matrix in find_matrices(model, Targets()):
        matrix.put(model, layer(storage, matrix.m, matrix.n, kept, align))
    return model


def in_codes(config: LlamaConfig, name: str) -> PreTrainedModel:
    """A model whose layers are all held as CODES, or CORRECTED, of that name."""
    model = random_model(config)
    for matrix in find_matrices(model, Targets()):
        W = matrix.weight(model)
        matrix.put(model, CODES[name].whole(W, None) if name in CODES else corrected(name, W))
    return model


def corrected(name: str, W: torch.Tensor) -> nn.Module:
    """A layer of the codes of W and factors; what these compute does not matter."""
    storage, rank = CORRECTED[name], int(name.partition("+")[2])
    rest, kept = storage.target(W)
    return storage.layer(Factors(rest[:, :rank], rest[:rank]), None, W, kept)


def prefill(model: PreTrainedModel) -> None:
    """Process a prompt."""
    model(torch.zeros(1, PROMPT, dtype=torch.long), logits_to_keep=1, use_cache=False)


def decode(model: PreTrainedModel) -> None:
    """Generate token by token."""
    token, cache = torch.zeros(1, 1, dtype=torch.long), DynamicCache(config=model.config)
    for _ in range(GENERATED):
        model(token, past_key_values=cache, use_cache=True)


def rows() -> Iterator[Row]:
    """Every comparison."""
    for name, config in STACKS.items():
        dense = random_model(config)
        for kept in KEPT:
            for storage in ("factors", "pivot"):
                model = compressed(config, storage, kept)
                for what, work in ((f"prefill {PROMPT}", prefill), ("decode", decode)):
                    with torch.no_grad():
                        ratio = speedup(partial(work, model), partial(work, dense))
                    yield Row(f"{storage}, {what}, kept {kept}", "dense model", name, ratio)
