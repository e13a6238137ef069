"""Weights in codes: those that transformers reads as numbers, and those that it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from svdexp.checkpoints.loading import load_config, load_model
from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.checkpoints.prequantised import as_numbers, refuse_codes
from svdexp.runtime.errors import UserError
from svdexp.schema import ModelConfig

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [32, 32]}
# The sixteen numbers of four bits: a sign, two bits of exponent, one of mantissa.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

Tensors = dict[str, torch.Tensor]


def quantised(folder: Path, tensors: Tensors, scheme: dict[str, Any]) -> ModelConfig:
    """Put these weights and the name of their scheme into a folder that holds a model."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    return ModelConfig("tiny", str(folder))


def fp8_llama(folder: Path) -> tuple[ModelConfig, Tensors]:
    """In blocks of 32 × 32, each with a scale; and the numbers that they mean."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(folder)
    tensors, meant = {}, {}
    for name, W in load_file(folder / "model.safetensors").items():
        tensors[name] = meant[name] = W
        if "proj" in name:
            (m, n), blocks = W.shape, W.float().unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
            scales = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors |= {name: codes.reshape(m, n), f"{name}_scale_inv": scales}
            meant[name] = (codes.float() * scales[:, None, :, None]).reshape(m, n)
    return quantised(folder, tensors, FP8), meant


def mxfp4_gpt_oss(folder: Path) -> tuple[ModelConfig, Tensors]:
    """As gpt-oss ships: experts in groups of 32 numbers of four bits that share an exponent."""
    torch.manual_seed(0)
    experts = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    GptOssForCausalLM(GptOssConfig(**SIZES, **experts)).to(torch.bfloat16).save_pretrained(folder)
    tensors, meant = {}, {}
    for name, W in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = meant[name] = W
            continue
        experts_count, n, m = W.shape
        codes = torch.randint(0, 256, (experts_count, m, n // 32, 16), dtype=torch.uint8)
        exponents = torch.randint(118, 124, (experts_count, m, n // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": exponents}
        pairs = torch.stack([E2M1[(codes & 15).int()], E2M1[(codes >> 4).int()]], dim=-1).flatten(-2)
        scaled = pairs * 2.0 ** (exponents.int() - 127)[..., None]
        meant[name] = scaled.flatten(-2).mT
    scheme = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return quantised(folder, tensors, scheme), meant


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("made", [fp8_llama, mxfp4_gpt_oss])
def test_codes_that_are_read_as_numbers(made: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    config, meant = made(tmp_path)
    model = load_model(config, dtype, torch.device("cpu"))
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    found = model.state_dict()
    for name, tensor in meant.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=2**-8, atol=0)
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_other_codes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    config = load_config(quantised(tmp_path, {}, {"quant_method": "gptq", "bits": 4}))
    with pytest.raises(UserError, match=r"x is quantised already \(gptq\).*name the model that it was made from"):
        refuse_codes(config, "x")
    assert as_numbers(config) == {}  # whoever evaluates it reads it as it is


def test_codes_are_not_streamed(tmp_path: Path) -> None:
    config, _ = fp8_llama(tmp_path / "model")
    with pytest.raises(UserError, match="residency=whole"):
        load_streamed(config, torch.float32, torch.device("cpu"), tmp_path)
