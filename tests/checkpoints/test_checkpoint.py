"""Saved models come back exactly, and damaged folders are refused in one sentence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config, PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.runtime.errors import UserError
from tests.conftest import LLAMA_LIKE, tiny_model
from tests.test_compress import WHITENED


@pytest.fixture
def saved(llama: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> Path:
    result = compress(llama, windows, WHITENED, 0.5)
    checkpoint.save(llama, tokenizer, tmp_path / "checkpoint", result.ranks)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_is_exact(
    model: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    for parameter in model.parameters():  # not model.to(dtype), which would round rotary buffers too
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    result = compress(model, windows, WHITENED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    loaded, words = svdexp.load(tmp_path)
    assert type(loaded).__name__ == type(model).__name__
    assert loaded.dtype == dtype
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    prompt = torch.tensor([words("the rank of a matrix")["input_ids"]])
    generated = loaded.generate(prompt, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > prompt.shape[1]
    assert torch.equal(generated, model.generate(prompt, max_new_tokens=5, do_sample=False))


def test_what_compress_leaves_is_saved_by_transformers_itself(
    model: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    """No function of svdexp's is called between `compress` and `save_pretrained`."""
    model.generation_config.max_new_tokens = 7
    compress(model, windows, WHITENED, 0.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values())
    for loaded in (plain, svdexp.load(tmp_path)[0]):
        assert torch.equal(loaded(windows).logits, model(windows).logits)
        assert loaded.generation_config.max_new_tokens == 7


def test_there_is_no_pickle_in_a_checkpoint(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt", ".py"}


def test_a_loaded_model_can_be_saved_again(saved: Path, windows: torch.Tensor, tmp_path: Path) -> None:
    loaded, words = svdexp.load(saved)
    loaded.save_pretrained(tmp_path / "again")
    words.save_pretrained(tmp_path / "again")
    again, _ = svdexp.load(tmp_path / "again")
    assert torch.equal(again(windows).logits, loaded(windows).logits)
    assert isinstance(again.model.layers[0].mlp.up_proj, LowRankLinear)


def test_saving_replaces_the_previous_checkpoint_whole(saved: Path, llama: PreTrainedModel, tokenizer: Any) -> None:
    (saved / "left-over").write_text("from an earlier save")
    ranks = {name: entry["rank"] for name, entry in llama.config.svdexp["layers"].items()}
    checkpoint.save(llama, tokenizer, saved, ranks)
    assert not (saved / "left-over").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_damaged_or_foreign_folders_are_refused(saved: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        svdexp.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is no compressed model's.*transformers loads dense ones"):
        svdexp.load(model_folder)
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    truncated = weights.read_bytes()[:200]
    del tensors["model.layers.0.mlp.up_proj.rank_in.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not match .* model\.layers\.0\.mlp\.up_proj\.rank_in\.weight"):
        svdexp.load(saved)
    weights.write_bytes(truncated)
    with pytest.raises(UserError, match="damaged or cut short"):
        svdexp.load(saved)


@pytest.mark.parametrize(
    "entry",
    [
        {"storage": "factors", "rank": -3},
        {"storage": "factors", "rank": "9"},
        {"storage": "os.system", "rank": 4},
    ],
)
def test_an_odd_layer_table_is_refused(saved: Path, entry: dict[str, Any]) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["svdexp"]["layers"]["model.layers.0.mlp.up_proj"] = entry
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"entry of model\.layers\.0\.mlp\.up_proj"):
        svdexp.load(saved)


def test_a_rank_that_disagrees_with_the_tensors_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["svdexp"]["layers"]["model.layers.0.mlp.up_proj"]["rank"] += 1
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=str(saved)):
        svdexp.load(saved)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.rank_in.weight", "model.norm.weight"])
def test_numbers_that_are_not_finite_are_refused(saved: Path, name: str, number: float) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors[name].flatten()[3] = number
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{name} holds NaN or infinity"):
        svdexp.load(saved)


@pytest.mark.parametrize("name", ["llama", "llama_gqa", "gpt2", "opt"])
def test_a_tie_that_was_flipped_is_refused(name: str, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    result = compress(model, windows, WHITENED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path, result.ranks)
    config = json.loads((tmp_path / "config.json").read_text())
    tied = config.get("tie_word_embeddings", model.config.tie_word_embeddings)
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": not tied}))
    sentence = r"1 tensors, first lm_head\.weight" if tied else r"config\.json ties lm_head\.weight to .*hold both"
    with pytest.raises(UserError, match=sentence):
        svdexp.load(tmp_path)


def test_names_do_not_end_like_known_projections(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """peft and sharding plans match modules by suffix."""
    projections = tuple(name.rpartition(".")[2] for name, _ in llama.named_modules())
    compress(llama, windows, replace(WHITENED), 0.5)
    inner = [name for name, _ in llama.named_modules() if name.rpartition(".")[2] in ("rank_in", "rank_out")]
    assert inner
    assert not any(name.rpartition(".")[2] in projections for name in inner)


def test_a_model_of_two_auto_classes_is_found_by_both(tmp_path: Path) -> None:
    """Gemma 3 is a causal language model to transformers, and one with eyes, in one class."""
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model"}
    text = LLAMA_LIKE | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=90)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    result = compress(model, torch.arange(48).reshape(2, 24), WHITENED, 0.5)
    checkpoint.save(model, None, tmp_path, result.ranks)
    tokens = torch.arange(9)[None]
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded, report = auto.from_pretrained(tmp_path, trust_remote_code=True, output_loading_info=True)
        assert not report["missing_keys"]
        torch.testing.assert_close(loaded.eval()(tokens).logits, model(tokens).logits)
