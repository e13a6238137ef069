"""Corrections as adapters: peft gives our logits on a dense base, and on one in codes where GPTQModel is there."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.export import publish
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, Format
from svdexp.storage import FactorStorage, ResidualStorage, Storage
from svdexp.storage.residual import Rounding
from tests.conftest import tiny_model
from tests.export.test_autogptq import unpacked, wide_model
from tests.support.experts import tiny_experts
from tests.support.shrunk import truncated

WINDOWS = torch.arange(96).view(4, 24)


@torch.no_grad()
def corrected(model: PreTrainedModel, folder: Path, storage: Storage, ranks: tuple[int, ...] = (32, 8)) -> None:
    """Every matrix of `model` in codes with a correction of one of the ranks, saved in `folder`."""
    found: dict[str, int | None] = {}
    for index, matrix in enumerate(find_matrices(model, Targets())):
        W, rank = matrix.weight(model), ranks[index % len(ranks)]
        rest, kept = storage.target(W)
        matrix.put(model, storage.layer(truncated(rest, rank), matrix.bias(model), W, kept))
        found[matrix.name] = rank
    checkpoint.save(model, None, folder, found)


def export(folder: Path, form: Format) -> Path:
    publish.publish(ExportConfig(str(folder / "run"), str(folder / "out"), form))
    return folder / "out"


def residual(**options: Any) -> ResidualStorage:
    return ResidualStorage(4, 32, rounding=Rounding.nearest, **options)


@pytest.mark.parametrize("name", ["wide", "gpt2"])  # the latter keeps its matrices transposed
@pytest.mark.parametrize("storage", [residual(), residual(factor_bits=16)], ids=["codes", "numbers"])
@torch.no_grad()
def test_peft_gives_our_logits_on_a_dense_base(name: str, storage: Storage, tmp_path: Path) -> None:
    model = wide_model() if name == "wide" else tiny_model(name)
    corrected(model, tmp_path / "run", storage, (16, 8))
    out = export(tmp_path, Format.peft)
    base = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(base.config, "svdexp")
    bare = base(WINDOWS).logits
    theirs = peft.PeftModel.from_pretrained(base, out / "adapter")
    expected = model(WINDOWS).logits
    found = theirs(WINDOWS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - expected).norm() < 0.02 * (bare - expected).norm()  # which the adapter makes up for
    card = (out / "README.md").read_text()
    assert 'PeftModel.from_pretrained(model, "FOLDER/adapter")' in card


@torch.no_grad()
def test_codes_in_their_layout_and_an_adapter(tmp_path: Path) -> None:
    model: Any = wide_model()
    corrected(model, tmp_path / "run", residual())
    out = export(tmp_path, Format.gptq)
    tensors, adapter = load_file(out / "model.safetensors"), load_file(out / "adapter" / "adapter_model.safetensors")
    about = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "gptq"
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = model.get_submodule(name)
        assert torch.equal(unpacked(tensors, name, 4), layer.codes.factor("out", torch.float64))
        A, B = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in ("B", "A"))
        torch.testing.assert_close(A @ B, layer.factors.weight)
        assert about["rank_pattern"][name] == about["alpha_pattern"][name] == B.shape[0]
    assert set(about["rank_pattern"].values()) == {32, 8}


@torch.no_grad()
def test_peft_gives_our_logits_on_codes(tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    model = wide_model()
    corrected(model, tmp_path / "run", residual())
    out = export(tmp_path, Format.gptq)
    base = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, out / "adapter")
    torch.testing.assert_close(theirs(WINDOWS).logits, model(WINDOWS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("bits", "kept"), [(8, torch.float32), (16, torch.bfloat16)])
@pytest.mark.parametrize("form", [Format.peft, Format.gptq])
def test_an_adapter_holds_the_numbers_of_the_run(form: Format, bits: int, kept: torch.dtype, tmp_path: Path) -> None:
    model: Any = wide_model().to(torch.bfloat16)
    corrected(model, tmp_path / "run", residual(factor_bits=bits))
    adapter = load_file(export(tmp_path, form) / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    factors = model.get_submodule(name).factors.float()  # of codes, what they stand for in float32
    A, B = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in ("B", "A"))
    assert A.dtype == B.dtype == kept
    torch.testing.assert_close(A.float() @ B.float(), factors.weight, rtol=1e-6, atol=1e-7)


def test_a_layer_without_a_correction_is_named(tmp_path: Path) -> None:
    corrected(wide_model(), tmp_path / "run", FactorStorage())
    with pytest.raises(UserError, match=r"^format=peft is for corrections, and \S+_proj has none: compress with stor"):
        export(tmp_path, Format.peft)
    assert not (tmp_path / "out").exists()


def test_an_expert_is_named(tmp_path: Path) -> None:
    """transformers keeps the dense base's experts in stacks, where an adapter by names of layers finds nothing."""
    corrected(tiny_experts("mixtral"), tmp_path / "run", residual(), (8,))
    with pytest.raises(UserError, match=r"^format=peft has no experts, but \S+\.0 is one's: use format=dense$"):
        export(tmp_path, Format.peft)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [Format.peft, Format.compressed_tensors])
def test_a_checkpoint_whose_layers_are_all_dense_has_nothing_for_it(form: Format, tmp_path: Path) -> None:
    """As a run at ratio=1 leaves it."""
    model = tiny_model("llama")
    ranks = dict.fromkeys(matrix.name for matrix in find_matrices(model, Targets()))
    checkpoint.save(model, None, tmp_path / "run", ranks)
    with pytest.raises(UserError, match=f"^format={form}.* all layers are dense here: use format=dense$"):
        publish.publish(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out"), form))
    assert not (tmp_path / "out").exists()
