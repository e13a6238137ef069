"""A GGUF file's RoPE scaling is the model's: logits are those of the same weights with the scaling in config.json."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedModel

from svdexp.checkpoints.gguf_rope import amend_config, llama3_divisors, stated
from svdexp.checkpoints.loading import load_config, load_model, load_skeleton, rope_scaling
from svdexp.runtime.errors import UserError
from svdexp.schema import ModelConfig
from tests.checkpoints.gguf_files import write_llama
from tests.conftest import LLAMA_LIKE

CPU = torch.device("cpu")
SCALED = "llama.rope.scaling."
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 4.0}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TRAINED = {"original_max_position_embeddings": 8192}
IN_FILE: dict[str, Any] = {f"{SCALED}factor": 4.0, f"{SCALED}original_context_length": 16}


def llama_with(rope: dict[str, Any]) -> PreTrainedModel:
    """A tiny llama whose attention is sharp enough for positions to matter."""
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA_LIKE, num_key_value_heads=2, rope_parameters={"rope_theta": 5e5} | rope)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(40)
            layer.self_attn.k_proj.weight.mul_(40)
    return model.eval()  # type: ignore[no-any-return]


def differ(file: Path, model: PreTrainedModel, windows: torch.Tensor) -> float:
    """The largest difference between the logits of the model read from the file and of `model`."""
    with torch.no_grad():
        found = load_model(ModelConfig("tiny", str(file)), torch.float32, CPU)(windows).logits
        return float((found - model(windows).logits).abs().max())


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (LINEAR, {f"{SCALED}type": "linear", f"{SCALED}factor": 4.0}),
        (LINEAR, {f"{SCALED}factor": 4.0}),  # linear is what llama.cpp takes it for
        (YARN, {f"{SCALED}type": "yarn", **IN_FILE}),
        (YARN, {f"{SCALED}type": "yarn", f"{SCALED}finetuned": True, f"{SCALED}yarn_ext_factor": 1.0, **IN_FILE}),
        (
            YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 0.5 * 1.1386294361119891},
            {f"{SCALED}type": "yarn", **IN_FILE}
            | {f"{SCALED}yarn_beta_fast": 8.0, f"{SCALED}yarn_beta_slow": 2.0, f"{SCALED}yarn_attn_factor": 0.5},
        ),
        ({"rope_type": "default"}, {f"{SCALED}type": "none", f"{SCALED}factor": 4.0}),
        ({"rope_type": "default"}, {f"{SCALED}type": "linear", f"{SCALED}factor": 1.0}),
    ],
)
def test_a_stated_scaling(tmp_path: Path, windows: torch.Tensor, rope: dict[str, Any], said: dict[str, Any]) -> None:
    model = llama_with(rope)
    file = write_llama(tmp_path / "tiny.gguf", model, **said)
    assert differ(file, model, windows) < 1e-5
    if rope["rope_type"] != "default":
        assert differ(write_llama(tmp_path / "plain.gguf", model), model, windows) > 1e-3


def test_divisors_that_are_llama_3s(tmp_path: Path, windows: torch.Tensor) -> None:
    model = llama_with(LLAMA3 | TRAINED)
    plain = llama_with({"rope_type": "default"})
    divisors = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq  # transformers' own
    assert divisors.unique().numel() == 3
    file = write_llama(tmp_path / "tiny.gguf", model, divisors)
    assert differ(file, model, windows) < 1e-5
    found = load_config(ModelConfig("tiny", str(file))).rope_parameters
    assert found | {"factor": 8.0} == LLAMA3 | TRAINED | {"rope_theta": 5e5}
    assert found["factor"] == pytest.approx(8)


def test_any_other_divisors(tmp_path: Path, windows: torch.Tensor) -> None:
    model = llama_with({"rope_type": "default"})
    divisors = torch.tensor([1.0, 3.0, 2.0, 7.0])
    file = write_llama(tmp_path / "tiny.gguf", model, divisors)
    model.model.rotary_emb.inv_freq /= divisors
    assert differ(file, model, windows) < 1e-5
    long = torch.randint(96, (1, 100), generator=torch.Generator().manual_seed(3))  # beyond the positions it has
    assert differ(file, model, long) < 1e-5


def test_divisors_of_one_change_nothing(tmp_path: Path, windows: torch.Tensor) -> None:
    model = llama_with(LINEAR)
    file = write_llama(tmp_path / "tiny.gguf", model, torch.ones(4), **{f"{SCALED}factor": 4.0})
    assert differ(file, model, windows) < 1e-5


def test_the_skeleton_has_the_scaling_too(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "tiny.gguf", llama_with(LINEAR), **{f"{SCALED}factor": 4.0})
    skeleton = load_skeleton(ModelConfig("tiny", str(file)), torch.float32)
    assert skeleton.config.rope_parameters | LINEAR == skeleton.config.rope_parameters


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"type": "longrope", "factor": 4.0}, r"llama\.rope\.scaling\.type=longrope: this RoPE scaling is not read"),
        ({"type": "linear", "factor": 4.0, "attn_factor": 1.5}, r"llama\.rope\.scaling\.attn_factor=1\.5: this part"),
        ({"type": "yarn", "factor": 4.0}, r"llama\.rope\.scaling\.type=yarn says no original_context_length"),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_ext_factor": 0.5},
            r"yarn_ext_factor=0\.5: only 1 can be rebuilt",
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_log_multiplier": 0.5},
            r"yarn_log_multiplier=0\.5: this part of RoPE scaling is not read",
        ),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(tmp_path: Path, said: dict[str, Any], sentence: str) -> None:
    keys = {f"{SCALED}{key}": value for key, value in said.items()}
    file = write_llama(tmp_path / "tiny.gguf", llama_with({"rope_type": "default"}), **keys)
    for load in (lambda of: load_model(of, torch.float32, CPU), load_config):
        with pytest.raises(UserError, match=sentence):
            load(ModelConfig("tiny", str(file)))


def test_a_file_that_is_no_gguf_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"any")
    with pytest.raises(UserError, match=r"^model\.path=.*tiny\.gguf: the model cannot be loaded: "):
        rope_scaling(ModelConfig("tiny", str(tmp_path / "tiny.gguf")))


def test_two_scalings_at_once_are_refused(tmp_path: Path) -> None:
    model = llama_with({"rope_type": "default"})
    file = write_llama(tmp_path / "tiny.gguf", model, torch.full((4,), 2.0), **{f"{SCALED}factor": 4.0})
    with pytest.raises(UserError, match=r"scales RoPE twice, by llama\.rope\.scaling\.type=linear and by rope_freqs"):
        load_config(ModelConfig("tiny", str(file)))


def test_of_layers_that_differ_those_with_full_attention_are_scaled() -> None:
    config = Gemma3TextConfig()
    before = dict(config.rope_parameters["sliding_attention"])
    amend_config(config, stated({"factor": 8.0}, ""))
    assert config.rope_parameters["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert config.rope_parameters["sliding_attention"] == before


def test_llama_3s_divisors_are_transformers_own() -> None:
    plain, scaled = (
        llama_with(rope).model.rotary_emb.inv_freq for rope in ({"rope_type": "default"}, LLAMA3 | TRAINED)
    )
    assert torch.allclose((plain / scaled).double(), llama3_divisors(4, 5e5, 8.0, 8192), rtol=1e-6)
