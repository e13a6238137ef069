"""Folders from anywhere: each kind of damage or malice gets one sentence, and nothing of it is run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, RTNStorage
from tests.support.shrunk import shrunk

LAYER = "model.layers.0.mlp.up_proj"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module", params=["whole", "sharded"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model, ranks = shrunk("llama_gqa", FactorStorage())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SHARD_SIZE", "20KB" if request.param == "sharded" else "4GB")
        checkpoint.save(model, tokenizer, folder / "checkpoint", ranks)
    return folder / "checkpoint"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    os.system(f"cp -r {made} {tmp_path}/checkpoint")
    return tmp_path / "checkpoint"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        svdexp.load(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_truncated_weights(folder: Path, size: int) -> None:
    weights = sorted(folder.glob("*.safetensors"))[-1]
    weights.write_bytes(weights.read_bytes()[:size])
    refused(folder, rf"{weights.name} is damaged or cut short")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("hidden_size", 2**20, r"does not match its config\.json: \S+ has shape .*, not"),
        ("intermediate_size", 50, r"mlp\.\S+ has shape .*, not .*50"),
        ("vocab_size", 97, r"embed_tokens\.weight has shape \(96, 32\), not \(97, 32\)"),
        ("num_hidden_layers", 2, r"model\.layers\.2\.\S+ of config\.json is not a linear layer"),
        ("num_key_value_heads", 0, "cannot be read"),
        ("hidden_size", "many", "cannot be read"),
        ("model_type", "nonsense", "cannot be read"),
    ],
)
def test_a_config_that_promises_other_shapes(folder: Path, key: str, value: Any, sentence: str) -> None:
    edit(folder / "config.json", lambda config: config.update({key: value}))
    refused(folder, sentence)


def test_a_config_that_promises_a_million_layers(folder: Path) -> None:
    """Found out before they are made: that would take minutes, and gigabytes."""
    edit(folder / "config.json", lambda config: config.update(num_hidden_layers=1_000_000, layer_types=None))
    refused(folder, r"config\.json promises more than \d+ tensors, but the files hold 50$")


def test_a_group_that_promises_a_long_row(tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    """A group is no longer than its row, so the number means nothing, and nothing is allocated by it."""
    model, ranks = shrunk("llama", RTNStorage(8, None))
    checkpoint.save(model, tokenizer, tmp_path, ranks)
    for entry in model.config.svdexp["layers"].values():
        entry["options"]["group_size"] = 10**15
    model.config.save_pretrained(tmp_path)
    assert torch.equal(svdexp.load(tmp_path)[0](windows).logits, model(windows).logits)


def test_a_table_that_promises_other_shapes(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["svdexp"]["layers"][LAYER].update(rank=11))
    refused(folder, rf"{LAYER}\.rank_\S+ has shape .*, not .*11")
    edit(folder / "config.json", lambda config: config["svdexp"]["layers"][LAYER].update(rank=10**9))
    refused(folder, rf"{LAYER} of shape \(48, 32\) cannot have the rank 1000000000")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_json_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "cannot be read|is not an object")


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "..", 3, None]
)
def test_an_index_that_points_elsewhere(folder: Path, name: Any) -> None:
    """The file that it points to is there, and would load."""
    weights = sorted(folder.glob("*.safetensors"))
    (folder.parent / "elsewhere.safetensors").write_bytes(weights[0].read_bytes())
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = json.loads((folder / INDEX).read_text()) if (folder / INDEX).exists() else {"weight_map": {"x": "y"}}
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = name
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, r"index\.json names .*, which is no safetensors file of this folder")


def test_a_config_that_points_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(transformers_weights="../elsewhere.safetensors"))
    refused(folder, r"config\.json may not set transformers_weights")


def test_an_adapter_that_points_elsewhere(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    refused(folder, "holds an adapter")


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_beside_good_weights_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save(Command(), folder / "pytorch_model.bin")
    svdexp.load(folder)
    assert not Path("made-by-a-pickle").exists()


def test_a_pickle_instead_of_weights_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for path in folder.glob("model*"):
        if path.suffix in (".safetensors", ".json"):
            path.unlink()
    refused(folder, "has no weights: neither model.safetensors nor")
    torch.save(Command(), folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin is a pickle, and reading it would run")
    assert not Path("made-by-a-pickle").exists()


def test_svd_llms_files_are_refused_with_a_way_out(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """A whole model, and whitening matrices, as SVDLLM.py saves them; by themselves and in their folder."""
    for name, content in {
        "jeffwan_llama_7b_hf_whitening_only_0.8.pt": {"model": llama, "tokenizer": None},
        "jeffwan_llama_7b_hf_profiling_wikitext2_256_3.pt": {0: {"self_attn.q_proj": torch.eye(4)}},
    }.items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / name
        torch.save(content, file)
        for path in (file, file.parent):
            refused(path, rf"{name} is a pickle, .* so svdexp does not; SVD-LLM .* method=svd_llm$")


def test_code_of_a_folder_is_not_run(folder: Path) -> None:
    (folder / "modeling_svdexp.py").write_text("raise SystemExit('the code of a folder was run')\n")
    edit(folder / "config.json", lambda config: config["auto_map"].update(AutoConfig="modeling_svdexp.Config"))
    svdexp.load(folder)
    edit(folder / "config.json", lambda config: config.update(model_type="unheard_of"))
    refused(folder, "cannot be read")
