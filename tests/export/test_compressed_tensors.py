"""compressed-tensors' layout: its bits read by hand give our matrices, transformers with that package our logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.export import publish
from svdexp.export.compressed_tensors import convert, require_codes
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, Format
from svdexp.storage import FactorStorage, PivotStorage, ResidualStorage, RTNStorage, Storage
from svdexp.storage.residual import Rounding
from tests.conftest import tiny_model
from tests.export.test_autogptq import wide_model
from tests.export.test_llama_cpp import in_codes
from tests.support.experts import EXPERTS, experts_in, tiny_experts

EVERY_WIDTH: list[Storage] = [RTNStorage(bits, 32) for bits in (2, 3, 4, 5, 6, 8)]
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def exported(storages: list[Storage], folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in memory with matrices in these storages in turn, exported to `folder`/out; and what its config asks."""
    model = wide_model()
    checkpoint.save(model, None, folder / "run", in_codes(model, storages, 8))
    publish.publish(ExportConfig(str(folder / "run"), str(folder / "out"), Format.compressed_tensors))
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not config.keys() & {"svdexp", "auto_map"}
    return model, config["quantization_config"]


def stream(words: torch.Tensor, bits: int, count: int) -> list[int]:
    """Codes from int32 `words`, lowest bits first, the words being one number."""
    number = sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))
    return [number >> bits * i & (1 << bits) - 1 for i in range(count)]


def unpacked(tensors: dict[str, torch.Tensor], name: str, weights: dict[str, Any]) -> torch.Tensor:
    """The matrix (rows, columns), entry by entry."""
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    bits, scale = weights["num_bits"], tensors[f"{name}.weight_scale"]
    size = columns if weights["strategy"] == "channel" else weights["group_size"]
    assert size * scale.shape[1] == columns
    codes = torch.tensor([stream(row, bits, columns) for row in tensors[f"{name}.weight_packed"]])
    zeros = torch.full(scale.shape, 1 << bits - 1)
    if not weights["symmetric"]:
        zeros = torch.tensor([stream(column, bits, rows) for column in tensors[f"{name}.weight_zero_point"].T]).T
    group = torch.arange(columns) // size
    return scale[:, group].double() * (codes - zeros[:, group])


@pytest.mark.parametrize(
    ("storage", "size"),
    [
        (RTNStorage(4, 32), 32),
        (RTNStorage(3, 96), 32),  # of 64 columns one group, of 128 one of 96 and one of 32
        (RTNStorage(8, None), None),
        (RTNStorage(2, 16), 16),
        (RTNStorage(5, 32, zero_points=True), 32),
        (RTNStorage(6, None, zero_points=True), None),
        (RTNStorage(4, 96, zero_points=True), 32),
    ],
    ids=str,
)
def test_the_layout_holds_our_matrices(storage: RTNStorage, size: int | None, tmp_path: Path) -> None:
    model, about = exported([storage], tmp_path)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert about["quant_method"] == "compressed-tensors"
    assert about["ignore"] == ["lm_head"]
    forms = {}
    for group in about["config_groups"].values():
        weights = group["weights"]
        assert (weights["num_bits"], weights["symmetric"]) == (storage.code_bits, not storage.zero_points)
        forms[weights["group_size"]] = weights
    assert size in forms
    for block in range(2):
        for part in PARTS:
            name = f"model.layers.{block}.{part}"
            layer: Any = model.get_submodule(name)
            cut = None if (storage.group_size or 0) >= layer.shapes["out"][1] else size
            assert torch.equal(unpacked(tensors, name, forms[cut]), layer.factor("out", torch.float64))
            assert tensors[f"{name}.weight_packed"].dtype == torch.int32
            assert (f"{name}.weight_zero_point" in tensors) is storage.zero_points
            if layer.bias is not None:
                assert torch.equal(tensors[f"{name}.bias"], layer.bias)


def test_each_width_is_a_group_that_names_its_matrices(tmp_path: Path) -> None:
    model, about = exported(EVERY_WIDTH, tmp_path)
    named: dict[int, list[str]] = {}
    for matrix in find_matrices(wide_model(), Targets()):
        layer: Any = matrix.layer(model)
        named.setdefault(layer.code_bits, []).append(matrix.name)
    groups = about["config_groups"].values()
    assert {group["weights"]["num_bits"]: group["targets"] for group in groups} == named
    assert len(named) == len(EVERY_WIDTH)


def test_what_stayed_dense_is_left_alone(tmp_path: Path) -> None:
    model = wide_model()
    ranks = in_codes(model, [RTNStorage(4, 32)], 8)
    for name in [name for name in ranks if name.endswith("q_proj")]:
        old: Any = model.get_submodule(name)
        dense = nn.Linear(*old.weight.T.shape)
        dense.load_state_dict({"weight": old.weight, "bias": old.bias})
        model.set_submodule(name, dense)
    checkpoint.save(model, None, tmp_path, ranks)
    convert(model)
    about: Any = model.config.quantization_config
    assert about["ignore"] == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"]
    assert [group["targets"] for group in about["config_groups"].values()] == [["Linear"]]


@torch.no_grad()
@pytest.mark.parametrize("storages", [EVERY_WIDTH, [RTNStorage(4, None)], [RTNStorage(8, 96)]], ids=len)
def test_transformers_with_the_package_gives_our_logits(
    storages: list[Storage], windows: torch.Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    model, _ = exported(storages, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs(windows).logits, model(windows).logits, rtol=1e-5, atol=1e-5)


def test_the_package_unpacks_zero_points(tmp_path: Path) -> None:
    """By itself, because transformers does not load them with releases 0.18.0 to 0.20.1."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model, about = exported([RTNStorage(3, 32, zero_points=True)], tmp_path)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    (group,) = about["config_groups"].values()
    compressor = compressors.BaseCompressor.get_value_from_registry(about["format"])
    for part in PARTS:
        name = f"model.layers.1.{part}"
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        own["weight_scale"] = own["weight_scale"].double()
        found = compressor.decompress(own, quantization.QuantizationScheme(**group))["weight"]
        layer: Any = model.get_submodule(name)
        assert torch.equal(found, layer.factor("out", torch.float64))


def test_the_card_says_what_reads_zero_points(tmp_path: Path) -> None:
    exported([RTNStorage(4, 32, zero_points=True)], tmp_path / "zeros")
    exported([RTNStorage(4, 32)], tmp_path / "none")
    zeros, none = ((tmp_path / name / "out" / "README.md").read_text() for name in ("zeros", "none"))
    assert "the package `compressed-tensors` is installed" in none
    assert "zero point" in zeros
    assert "zero point" not in none


def test_it_is_not_read_as_a_checkpoint_of_ours(tmp_path: Path) -> None:
    exported([RTNStorage(4, 32)], tmp_path)
    with pytest.raises(UserError, match="is quantised by another library; load it with transformers"):
        svdexp.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [
        (FactorStorage(), r"_proj is kept as factors of rank 8: use format=vllm or format=dense$"),
        (PivotStorage(), r"is kept as pivot of rank 8: use format=vllm or format=dense$"),
        (
            ResidualStorage(4, 32, rounding=Rounding.nearest),
            r"kept as residual of rank 8: use format=gptq or format=pe",
        ),
        (
            RTNStorage(4, 48),
            r"rows of .*q_proj have 64 columns, no multiple of 48: compress with a storage\.group_size",
        ),
    ],
    ids=lambda found: type(found).__name__,
)
def test_what_the_layout_cannot_hold(storage: Storage, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^format=compressed_tensors has .*{sentence}"):
        exported([storage], tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "rank", "sentence"),
    [
        ("quantised", 8, "as quantised of rank 8: use format=gptq, or method=quantise"),
        ("scaled", None, "as scaled: use format=gguf, or storage=gptq4, whose columns are not scaled"),
    ],
)
def test_other_codes_are_refused(kind: str, rank: int | None, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"but up_proj is kept {sentence}"):
        require_codes({"down_proj": {"storage": "quantised", "rank": None}, "up_proj": {"storage": kind, "rank": rank}})


@pytest.mark.parametrize("kind", ["gpt2", "experts"])
def test_other_modules_are_refused_by_name(kind: str) -> None:
    model = tiny_experts(next(iter(EXPERTS))) if kind == "experts" else tiny_model(kind)
    matrix = experts_in(model)[0] if kind == "experts" else find_matrices(model, Targets())[0]
    matrix.put(model, RTNStorage(8, None).whole(matrix.weight(model), None))
    checkpoint.label(model, {matrix.name: None})
    with pytest.raises(UserError, match=f"layers of nn.Linear alone, but {matrix.name} is none: use format=dense"):
        convert(model)
