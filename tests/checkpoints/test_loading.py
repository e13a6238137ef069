"""Dense models from folders: what the files lack is refused by name, what they have too much is not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import load_config, load_model, load_skeleton, locate
from svdexp.engine.compress import compress
from svdexp.runs.evaluation import load
from svdexp.runtime.errors import UserError
from svdexp.schema import EvaluateConfig, ModelConfig
from tests.checkpoints import gguf_files
from tests.conftest import tiny_model
from tests.test_compress import WHITENED

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj.weight"
BIAS = "model.layers.2.self_attn.q_proj.bias"
State = dict[str, torch.Tensor]


def read(folder: Path) -> PreTrainedModel:
    return load_model(ModelConfig("tiny", str(folder)), torch.float32, CPU)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": tensor for key, tensor in state.items()}


def narrowed(state: State) -> State:
    return state | {UP: state[UP][:-1].contiguous()}


def written(folder: Path, name: str, change: Callable[[State], State], form: str) -> Path:
    """A model whose weights were changed: in one file, in shards, or as torch saves them."""
    tiny_model(name).save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")
    for path in folder.glob("*.safetensors"):
        state = load_file(path)
        changed = change(state) if form != "shards" else {key: x for key, x in state.items() if key in change(state)}
        if form == "bin":
            path.unlink()
            torch.save(changed, folder / "pytorch_model.bin")
        else:
            save_file(changed, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("form", ["file", "bin", "shards"])
@pytest.mark.parametrize(("name", "gone"), [("qwen2", UP), ("qwen2", BIAS), ("gpt_neox", "embed_out.weight")])
def test_a_tensor_that_is_gone_is_named(form: str, name: str, gone: str, tmp_path: Path) -> None:
    known = "lm_head.weight" if gone == "embed_out.weight" else gone
    with pytest.raises(UserError, match=rf"lack 1 of the model's tensors, {known} is missing$"):
        read(written(tmp_path / "model", name, without(gone), form))


def test_a_gguf_file_that_lacks_tensors_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(gguf_files.PARTS, "mlp.up_proj")
    path = gguf_files.write_llama(tmp_path / "tiny.gguf", tiny_model("llama"))
    with pytest.raises(UserError, match=r"lack 3 of the model's tensors, model\.layers\.0\.mlp\.up_proj\.weight is"):
        load_model(ModelConfig("tiny", str(path)), torch.float32, CPU)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model."])
@pytest.mark.parametrize("form", ["file", "bin"])
def test_a_wrappers_prefix_is_told(prefix: str, form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"lm_head\.weight is missing; there is {prefix}lm_head\.weight$"):
        read(written(tmp_path / "model", "llama", prefixed(prefix), form))


def test_a_shape_that_is_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight has shape \(47, 32\), but .* \(48, 32\)"):
        read(written(tmp_path / "model", "llama", narrowed, "file"))


@pytest.mark.parametrize("form", ["file", "bin"])
def test_tied_heads_and_surplus_tensors_are_no_fault(
    form: str, windows: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(state: State) -> State:
        assert "lm_head.weight" not in state
        return state | {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "value_head.weight": torch.ones(2),
        }

    model = read(written(tmp_path / "model", "llama_gqa", change, form))
    assert torch.equal(model(windows).logits, tiny_model("llama_gqa")(windows).logits)
    # of rotary_emb transformers knows that older models had it
    assert (
        "the files hold 1 tensors that the model of config.json has no place for, first value_head.weight"
        in caplog.text
    )


@torch.no_grad()
def test_a_head_that_is_not_what_the_config_ties_it_to_stays(
    windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    """Transformers reads both, and so does whoever reads what was made of them."""
    head = torch.randn(96, 32)
    model = read(written(tmp_path / "model", "llama_gqa", lambda state: state | {"lm_head.weight": head}, "file"))
    assert torch.equal(model.lm_head.weight, head)
    done = compress(model, windows, WHITENED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "small", done.ranks)
    loaded, _ = checkpoint.load(tmp_path / "small")
    assert torch.equal(loaded.lm_head.weight, head)
    assert torch.equal(loaded(windows).logits, model(windows).logits)


def test_an_evaluation_refuses_it_too(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "llama", without(UP), "file")
    config = EvaluateConfig(str(folder), ModelConfig("tiny", str(folder)))
    with pytest.raises(UserError, match="up_proj"):
        load(config.model, torch.float32, CPU)


def test_a_compressed_one_is_told_to_be_exported_first(
    llama: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    result = compress(llama, windows, WHITENED, 0.5)
    checkpoint.save(llama, tokenizer, tmp_path, result.ranks)
    config = ModelConfig("tiny", str(tmp_path))
    for refuse in (lambda: load_model(config, torch.float32, CPU), lambda: load_skeleton(config, torch.float32)):
        with pytest.raises(UserError, match=r"compressed already.*format=dense first"):
            refuse()
    assert load_config(config).svdexp["layers"]  # what measures it may look
    assert torch.equal(load(config, torch.float32, CPU)(windows).logits, llama(windows).logits)
    with pytest.raises(UserError, match="compressed already"):
        compress(llama, windows, WHITENED, 0.9)


@pytest.mark.parametrize("reader", [load_model, load_skeleton])
def test_a_million_layers_are_refused_at_once(reader: Any, model_folder: Path, tmp_path: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    for name in ("model.safetensors", "generation_config.json"):
        (tmp_path / name).symlink_to(model_folder / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_000_000, "layer_types": None}))
    arguments = [CPU] if reader is load_model else []
    with pytest.raises(UserError, match=r"promises more than \d+ tensors, but the files hold 29"):
        reader(ModelConfig("tiny", str(tmp_path)), torch.float32, *arguments)


def test_a_folder_has_no_revisions(model_folder: Path) -> None:
    config = ModelConfig("tiny", str(model_folder))
    assert locate(config).location == str(model_folder)
    sentence = f"^model.revision=abc is for models of a hub, and model.path={model_folder} lies here$"
    with pytest.raises(UserError, match=sentence):
        locate(replace(config, revision="abc"))
    assert locate(ModelConfig("gpt2", "somebody/gpt2", revision="abc")).options["revision"] == "abc"
