"""ASVD's hub repositories: folders written here as their build script leaves them, read by svdexp.load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from tests.conftest import tiny_model
from tests.support.shrunk import truncated

SKIPPED = "v_proj"  # dense, as where their search left a layer alone


class SVDLinear(nn.Module):
    """Theirs: B first, then A with the bias."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        factors, bias = truncated(linear.weight, rank), linear.bias
        self.BLinear = nn.Linear(linear.in_features, rank, bias=False)
        self.ALinear = nn.Linear(rank, linear.out_features, bias=bias is not None)
        # Contiguous as in a file: kernels round by the layout.
        self.BLinear.weight.data = factors.B.float().contiguous()
        self.ALinear.weight.data = factors.A.float().contiguous()
        if bias is not None:
            self.ALinear.bias.data = bias.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ALinear(self.BLinear(x))  # type: ignore[no-any-return]


def build(name: str, tokenizer: Any, folder: Path, head: bool = True) -> tuple[PreTrainedModel, dict[str, int]]:
    """Write a repository; the model that it stands for, and its ranks."""
    model, ranks = tiny_model(name), {}
    names = [layer.name for layer in find_matrices(model, Targets(exclude=[f"*{SKIPPED}"]))] + ["lm_head"] * head
    for index, where in enumerate(names):
        ranks[where] = 4 + index % 3
        model.set_submodule(where, SVDLinear(model.get_submodule(where), ranks[where]))
    for parameter in model.parameters():  # not model.half(), which would round rotary buffers too
        parameter.data = parameter.data.half()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    config = model.config.to_dict() | {"truncation_ranks": ranks}
    kind = name.partition("_")[0]
    config |= {"architectures": [f"ASVD{kind.title()}ForCausalLM"], "torch_dtype": "float16"}
    config["auto_map"] = {
        "AutoConfig": f"configuration_asvd_{kind}.Config",
        "AutoModelForCausalLM": f"modeling_asvd_{kind}.Model",
    }
    for file in (f"configuration_asvd_{kind}.py", f"modeling_asvd_{kind}.py"):
        (folder / file).write_text("raise SystemExit('the code of a repository was run')\n")
    (folder / "config.json").write_text(json.dumps(config))
    return model, ranks


@pytest.mark.parametrize(("name", "head"), [("llama", True), ("llama_gqa", True), ("llama_gqa", False), ("opt", True)])
def test_logits_are_theirs(name: str, head: bool, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    model, ranks = build(name, tokenizer, tmp_path, head)
    assert checkpoint.is_compressed(tmp_path)
    loaded, words = svdexp.load(tmp_path)
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    assert words("rank")["input_ids"] == tokenizer("rank")["input_ids"]
    found = {
        key: layer.rank_in.out_features for key, layer in loaded.named_modules() if isinstance(layer, LowRankLinear)
    }
    assert found == ranks


def test_an_imported_model_is_one_of_ours(windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    build("llama", tokenizer, tmp_path / "theirs")
    model, words = svdexp.load(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    words.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "truncation_ranks" not in config
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_svdexp.LowRankLlamaForCausalLM"
    assert torch.equal(svdexp.load(tmp_path / "ours")[0](windows).logits, model(windows).logits)


def test_there_is_one_size(tokenizer: Any, tmp_path: Path) -> None:
    build("llama", tokenizer, tmp_path)
    with pytest.raises(UserError, match="can only be loaded as it was saved"):
        svdexp.load(tmp_path, ratio=0.1)


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        ({"model.layers.0.mlp.up_proj": 0}, r"entry of model\.layers\.0\.mlp\.up_proj"),
        ({"model.layers.0.mlp.up_proj": "4"}, r"entry of model\.layers\.0\.mlp\.up_proj"),
        ({"model.layers.0.mlp.up_proj": 9}, r"up_proj\.rank_(in|out)\.weight has shape .*, not .*9"),
        ({"model.layers.9.mlp.up_proj": 4}, r"model\.layers\.9\.mlp\.up_proj of config\.json is not a linear layer"),
        ({"model.norm": 4}, r"model\.norm of config\.json is not a linear layer"),
        ({"model.layers.1.self_attn.v_proj": 4}, r"does not match its config\.json: .* tensors"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(
    ranks: dict[str, Any], sentence: str, tokenizer: Any, tmp_path: Path
) -> None:
    build("llama", tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["truncation_ranks"] |= ranks
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        svdexp.load(tmp_path)


def test_a_missing_tensor_is_named(tokenizer: Any, tmp_path: Path) -> None:
    build("llama", tokenizer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.ALinear.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.rank_out\.weight"):
        svdexp.load(tmp_path)
