"""bitsandbytes quantises the linear layers inside a checkpoint's low-rank ones while transformers loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from svdexp.models import checkpoint
from svdexp.storage import FactorStorage, PivotStorage, Storage
from tests.models.shrunk import shrunk

INT8 = BitsAndBytesConfig(load_in_8bit=True)
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()], ids=["factors", "pivot"])
@pytest.mark.parametrize(("config", "kind", "error"), [(INT8, "Linear8bitLt", 0.05), (NF4, "Linear4bit", 0.5)])
@torch.no_grad()
def test_a_checkpoint_can_be_quantised_while_it_loads(
    storage: Storage,
    config: BitsAndBytesConfig,
    kind: str,
    error: float,
    windows: torch.Tensor,
    tmp_path: Path,
    tokenizer: Any,
) -> None:
    model, ranks = shrunk("llama_gqa", storage, torch.float32)
    checkpoint.save(model, tokenizer, tmp_path / "saved", ranks)
    options: dict[str, Any] = {"trust_remote_code": True, "dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", quantization_config=config, **options)
    layer = loaded.get_submodule("model.layers.0.mlp.up_proj")
    assert {type(child).__name__ for child in layer.children()} == {kind}
    expected, found = model(windows).logits, loaded(windows).logits
    assert 0 < float((found - expected).norm()) < error * float(expected.norm())
