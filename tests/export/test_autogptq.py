"""AutoGPTQ's layout: its published unpacking gives our matrices, transformers with GPTQModel our logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import svdexp
from svdexp.allocation import GlobalLoss, Whole
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.export import publish
from svdexp.export.autogptq import common_form, convert, packed
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, Format
from svdexp.storage import FactorStorage, RTNStorage, Storage
from tests.conftest import LLAMA_LIKE
from tests.support.experts import tiny_experts

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "attention_bias": True}
WINDOWS = torch.arange(96).view(4, 24)


def wide_model() -> PreTrainedModel:
    """Matrices of whole words."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE | SHAPE, num_key_value_heads=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def saved(folder: Path, tokenizer: Any, storage: Storage, *, factors: bool = True) -> PreTrainedModel:
    """A checkpoint with ranks of 32 and whole matrices, or with these alone."""
    model = wide_model()
    method = Method("kron", InputMoment(), GlobalLoss(rank_align=32), storage)
    if not factors:
        method = Method("quantise", None, Whole(), storage)
    bits = storage.whole_bits(64, 64) / 64**2 / 16
    ranks = compress(model, WINDOWS, method, bits * (0.9 if factors else 1.1)).ranks
    assert set(ranks.values()) == ({32, None} if factors else {None})
    checkpoint.save(model, tokenizer, folder, ranks)
    return model


def stream(words: torch.Tensor, bits: int, count: int) -> list[int]:
    """Codes from int32 `words`, lowest bits first, the words being one number."""
    number = sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))
    return [number >> bits * i & (1 << bits) - 1 for i in range(count)]


def unpacked(tensors: dict[str, torch.Tensor], name: str, bits: int) -> torch.Tensor:
    """The matrix (rows, columns), entry by entry."""
    qweight, qzeros, scales, group = (tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx"))
    columns, rows = len(group), qweight.shape[1]
    codes = torch.tensor([stream(qweight[:, row], bits, columns) for row in range(rows)])
    zeros = torch.tensor([stream(line, bits, rows) for line in qzeros]) + 1
    return scales[group.long()].T.double() * (codes - zeros[group.long()].T)


@pytest.mark.parametrize("storage", [RTNStorage(4, 32), RTNStorage(3, 16), RTNStorage(8, None)], ids=str)
def test_the_layout_holds_our_matrices(storage: RTNStorage, tmp_path: Path, tokenizer: object) -> None:
    model: Any = saved(tmp_path / "run", tokenizer, storage)
    publish.publish(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out"), Format.gptq))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    about = config["quantization_config"]
    assert (about["quant_method"], about["bits"], about["sym"], about["desc_act"]) == (
        "gptq",
        storage.code_bits,
        True,
        False,
    )
    assert about["group_size"] == (storage.group_size or -1)
    table = config["svdexp"]["layers"]
    for block in range(2):
        for part in ("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj"):
            name = f"model.layers.{block}.{part}"
            layer = model.get_submodule(name)
            sides = {"out": name} if len(layer.shapes) == 1 else {"in": f"{name}.rank_in", "out": f"{name}.rank_out"}
            assert (name in table) == ("in" in sides)
            for side, where in sides.items():
                assert tensors[f"{where}.scales"].dtype == torch.float16
                assert torch.equal(unpacked(tensors, where, storage.code_bits), layer.factor(side, torch.float64))
            if layer.bias is not None:
                assert torch.equal(tensors[f"{sides['out']}.bias"], layer.bias)


def test_without_factors_it_is_a_plain_quantised_model(tmp_path: Path, tokenizer: object) -> None:
    saved(tmp_path / "run", tokenizer, RTNStorage(), factors=False)
    publish.publish(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out"), Format.gptq))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "svdexp" not in config
    assert "auto_map" not in config
    with pytest.raises(UserError, match="is quantised by another library; load it with transformers"):
        svdexp.load(tmp_path / "out")


@pytest.mark.parametrize("factors", [True, False])
def test_transformers_and_gptqmodel_give_our_logits(factors: bool, tmp_path: Path, tokenizer: object) -> None:
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    model = saved(tmp_path / "run", tokenizer, RTNStorage(), factors=factors)
    publish.publish(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out"), Format.gptq))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(theirs(WINDOWS).logits, model(WINDOWS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [
        (FactorStorage(), r"in codes alone, but not so is model\.layers\.0\..*: compress with storage=gptq4 "),
        (RTNStorage(4, 32, zero_points=True), "has no zero points here"),
        (RTNStorage(6, None), "has codes of 3, 4, 8 bits, not of 6: compress with storage=gptq4"),
        (RTNStorage(4, 32), r"_proj has shape \(\d+, \d+\), but .* of 32 .* method\.allocation\.rank_align=32"),
        (
            RTNStorage(4, 48),
            r"multiples of 96 and rows in multiples of 8; compress with storage\.group_size=32, .* inputs, 64,",
        ),
    ],
    ids=["factors", "zero points", "six bits", "ranks", "groups"],
)
def test_what_the_layout_cannot_hold(storage: Storage, sentence: str, tmp_path: Path, tokenizer: object) -> None:
    model = wide_model()
    ranks = compress(model, WINDOWS, Method("svd_llm", InputMoment(), GlobalLoss(), storage), 0.2).ranks
    checkpoint.save(model, tokenizer, tmp_path, ranks)
    with pytest.raises(UserError, match=sentence):
        convert(model)


@pytest.mark.parametrize(
    ("n", "rank", "m", "helps"), [(64, 20, 64, True), (100, 32, 64, False), (64, 32, 60, False), (64, 5, 8, False)]
)
def test_another_rank_is_advised_only_where_it_helps(n: int, rank: int, m: int, helps: bool) -> None:
    layer = QuantisedLinear(n, rank, m, bias=False, code_bits=4, group_size=32)
    with pytest.raises(UserError, match="layer has shape") as refusal:
        packed("layer", layer)
    assert ("rank_align" in str(refusal.value)) is helps


def test_forms_of_several_widths_are_not_told_to_do_without_zero_points() -> None:
    """As method=mixed makes them, which has no such switch."""
    layers = [QuantisedLinear(64, None, 64, False, code_bits=bits, group_size=32, zero_points=True) for bits in (3, 4)]
    with pytest.raises(UserError, match="here are 2: use format=compressed_tensors"):
        common_form(layers)


def test_experts_in_stacks(tmp_path: Path) -> None:
    model = tiny_experts("mixtral")
    ranks = compress(model, WINDOWS, Method("quantise", None, Whole(), RTNStorage()), 0.9).ranks
    checkpoint.save(model, None, tmp_path / "run", ranks)
    with pytest.raises(UserError, match=r"has no experts in stacks, but .*experts\..* is one's: use format=dense"):
        publish.publish(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out"), Format.gptq))
    assert not (tmp_path / "out").exists()


def test_a_matrix_left_out(tmp_path: Path, tokenizer: object) -> None:
    model, targets = wide_model(), Targets(exclude=["*.q_proj"])
    ranks = compress(model, WINDOWS, Method("quantise", None, Whole(), RTNStorage()), 0.9, targets=targets).ranks
    checkpoint.save(model, tokenizer, tmp_path, ranks)
    with pytest.raises(UserError, match=r"but not so is model\.layers\.0\.self_attn\.q_proj"):
        convert(model)
