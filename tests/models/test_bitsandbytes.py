"""bitsandbytes quantises the linear layers inside a checkpoint's low-rank ones while transformers loads it."""

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from svdexp.checkpoints import checkpoint
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.storage import FactorStorage, PivotStorage, Storage
from tests.support.shrunk import shrunk

INT8 = BitsAndBytesConfig(load_in_8bit=True)
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture(params=[False, True], ids=["any CPU", "avx512_bf16"])
def _cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever kind of CPU this is: bitsandbytes packs weights the same way, and refuses shapes, for either."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: request.param)


@pytest.mark.usefixtures("_cpu")
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


def test_shapes_that_the_fast_kernel_takes_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiples of 32 outputs and 64 inputs, on both sides of the rank."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    fast = {}
    for rank in (32, 64, 65, 128):
        layer: Any = LowRankLinear(192, rank, 96, bias=False)
        for name, child in list(layer.named_children()):
            assert isinstance(child, nn.Linear)
            setattr(layer, name, bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, bias=False))
        fast[rank] = [child.support_avx512bf16_for_cpu for child in (layer.rank_in, layer.rank_out)]
    assert fast == {32: [True, False], 64: [True, True], 65: [False, False], 128: [True, True]}
