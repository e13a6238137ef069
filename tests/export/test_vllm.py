"""Factor pairs of every storage that has factors, and what vLLM's backend is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.export.vllm import factor_pairs
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_layers import LAYERS
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage
from tests.conftest import TINY, tiny_model
from tests.support.experts import EXPERTS, experts_in, tiny_experts
from tests.support.shrunk import shrunk, truncated


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage(), RemapStorage()], ids=lambda x: type(x).__name__)
def test_pairs_compute_the_same(name: str, storage: Any, tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    saved, ranks = shrunk(name, storage, torch.float32)
    checkpoint.save(saved, tokenizer, tmp_path / "here", ranks)
    model, _ = svdexp.load(tmp_path / "here")
    expected = model(windows).logits
    factor_pairs(model)
    torch.testing.assert_close(model(windows).logits, expected, rtol=1e-4, atol=1e-4)
    for layer, rank in ranks.items():
        pair = model.get_submodule(layer)
        if layer in model.config.svdexp["layers"]:
            assert type(pair) is LowRankLinear
            assert rank * sum(pair.weight.shape) < pair.weight.numel()
            assert model.config.svdexp["layers"][layer] == {"storage": "factors", "rank": rank}
        else:
            assert isinstance(pair, nn.Linear | Conv1D)
            assert rank * sum(pair.weight.shape) >= pair.weight.numel()
    checkpoint.write(model, tokenizer, tmp_path / "there")
    groups = model.config.svdexp["together"]
    assert sorted(map(sorted, groups)) == [sorted(names) for names in fed_together(model)]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "there", trust_remote_code=True)
    torch.testing.assert_close(plain(windows).logits, expected, rtol=1e-4, atol=1e-4)


def fed_together(model: Any) -> list[list[str]]:
    """The pairs of each parent that are called q, k, v or gate, up."""
    pairs = list(model.config.svdexp["layers"])
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in pairs:
        parent, _, child = name.rpartition(".")
        if child.partition("_")[0] in ("q", "k", "v", "gate", "up"):
            groups.setdefault((parent, child.startswith(("gate", "up"))), []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def test_what_is_no_pair_is_refused_by_name() -> None:
    model = tiny_model("llama")
    name = "model.layers.1.mlp.up_proj"
    old: Any = model.get_submodule(name)
    whole = LAYERS["quantised"].empty(
        *old.weight.T.shape[:1], None, len(old.weight), False, code_bits=8, group_size=None
    )
    model.set_submodule(name, whole)
    checkpoint.label(model, {name: None})
    with pytest.raises(UserError, match=rf"pairs of factors alone, but {name} is kept as quantised: use format=dense"):
        factor_pairs(model)


def test_experts_are_refused() -> None:
    model = tiny_experts(next(iter(EXPERTS)))
    matrix = experts_in(model)[0]
    W = matrix.weight(model)
    matrix.put(model, FactorStorage().layer(truncated(W, 2), None, W))
    checkpoint.label(model, {matrix.name: 2})
    with pytest.raises(UserError, match=f"has no experts, but {matrix.name} is one's: use format=dense"):
        factor_pairs(model)


def test_a_model_without_small_pairs_is_refused() -> None:
    model, ranks = shrunk("llama", PivotStorage(), torch.float32)
    left = {}
    for name in ranks:
        if name.endswith("q_proj"):
            old: Any = model.get_submodule(name)
            W = old.weight.detach()
            model.set_submodule(name, PivotStorage().layer(truncated(W, 20), None, W))
            left[name] = 20
        else:
            model.set_submodule(name, tiny_model("llama").get_submodule(name))
    checkpoint.label(model, left)
    with pytest.raises(UserError, match="no layer is smaller as a pair of factors than dense"):
        factor_pairs(model)


def test_a_head_becomes_dense() -> None:
    model, ranks = shrunk("llama", FactorStorage(), torch.float32)
    head: Any = model.get_output_embeddings()
    W = head.weight.detach()
    model.lm_head = FactorStorage().layer(truncated(W, 5), None, W)
    product = model.lm_head.weight.detach()
    checkpoint.label(model, ranks | {"lm_head": 5})
    factor_pairs(model)
    assert type(model.lm_head) is nn.Linear
    torch.testing.assert_close(model.lm_head.weight, product)
    assert "lm_head" not in model.config.svdexp["layers"]
