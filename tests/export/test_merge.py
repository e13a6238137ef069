"""Merged models: dense again, of the original class, and W' in every place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.export.merge import merge
from svdexp.models.families import LINEAR
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage
from tests.conftest import TINY, tiny_model
from tests.support.shrunk import shrunk

STORAGES = [FactorStorage(), PivotStorage(), RemapStorage()]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: type(storage).__name__)
def test_a_merged_model_computes_the_same(name: str, storage: Any, windows: torch.Tensor) -> None:
    model, ranks = shrunk(name, storage, torch.float32)
    checkpoint.label(model, ranks)
    expected = model(windows).logits
    products = {layer: model.get_submodule(layer).weight.detach().clone() for layer in ranks}
    merge(model)
    assert type(model) is type(tiny_model(name))
    torch.testing.assert_close(model(windows).logits, expected, rtol=1e-4, atol=1e-4)
    for layer, product in products.items():
        torch.testing.assert_close(LINEAR.weight(model.get_submodule(layer)), product)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_plain_transformers_loads_it(name: str, tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    saved, ranks = shrunk(name, RemapStorage())
    checkpoint.save(saved, tokenizer, tmp_path / "here", ranks)
    model, _ = svdexp.load(tmp_path / "here")
    merge(model)
    model.save_pretrained(tmp_path / "dense")
    assert not list((tmp_path / "dense").glob("*.py"))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(report.values())
    assert loaded.dtype == torch.bfloat16
    assert loaded.state_dict().keys() == tiny_model(name).state_dict().keys()
    assert not hasattr(loaded.config, "svdexp")
    assert torch.equal(loaded(windows).logits, model(windows).logits)
