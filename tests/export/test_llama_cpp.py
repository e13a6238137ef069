"""GGUF files: read back by gguf and by transformers they give our numbers, to the last bit where the card says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, dequantize, quantize
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import load_model
from svdexp.export import publish
from svdexp.models.portable.svdexp_residual import ResidualLinear
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, Format, ModelConfig
from svdexp.storage import FactorStorage, PivotStorage, ResidualStorage, RTNStorage, Storage
from svdexp.storage.residual import Rounding
from tests.checkpoints.gguf_files import PARTS, write_llama
from tests.conftest import LLAMA_LIKE
from tests.support.shrunk import truncated

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"q_proj": 4, "k_proj": 2}
NEAREST: dict[str, Any] = {"rounding": Rounding.nearest}


def wide_model(seed: int = 0) -> PreTrainedModel:
    """Rows of whole blocks, in float32."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE | SHAPE, num_key_value_heads=2))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def in_codes(model: PreTrainedModel, storages: list[Storage], rank: int) -> dict[str, int | None]:
    """Every matrix of `model` in one of the storages, in turn; the ranks."""
    ranks: dict[str, int | None] = {}
    for index, matrix in enumerate(find_matrices(model, Targets())):
        storage, W = storages[index % len(storages)], matrix.weight(model)
        old: Any = matrix.layer(model)
        layer: Any = storage.whole(W, old.bias)
        ranks[matrix.name] = None if layer is not None else rank
        if layer is None:
            rest, kept = storage.target(W)
            layer = storage.layer(truncated(rest, rank), old.bias, W, kept)
        matrix.put(model, layer)
    return ranks


def exported(storages: list[Storage], folder: Path, rank: int = 32) -> PreTrainedModel:
    """A model in memory, whose files are in `folder`/out."""
    model = wide_model()
    write_llama(folder / "dense.gguf", model)
    checkpoint.save(model, None, folder / "run", in_codes(model, storages, rank))
    export(folder)
    return model


def export(folder: Path, **options: Any) -> None:
    words: dict[str, Any] = {"path": str(folder / "run"), "to": str(folder / "out"), "format": Format.gguf}
    publish.publish(ExportConfig(**words | {"gguf": str(folder / "dense.gguf")} | options))


def read(path: Path) -> dict[str, tuple[Type, torch.Tensor]]:
    """Type and numbers of every tensor."""
    return {
        part.name: (part.tensor_type, torch.from_numpy(dequantize(part.data, part.tensor_type).copy()))
        for part in GGUFReader(path).tensors
    }


def in_our_order(W: torch.Tensor, part: str) -> torch.Tensor:
    """Rows as transformers has them: llama.cpp pairs neighbours of a head."""
    heads = HEADS.get(part.rpartition(".")[2])
    return W if heads is None else W.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def matrices(model: PreTrainedModel) -> list[tuple[str, str, Any]]:
    """llama.cpp's name of each matrix, the end of ours, and its layer."""
    return [
        (f"blk.{block}.{theirs}.weight", ours, model.get_submodule(f"model.layers.{block}.{ours}"))
        for block in range(model.config.num_hidden_layers)
        for ours, theirs in PARTS.items()
        if "norm" not in ours
    ]


SYMMETRIC: list[tuple[Storage, Type]] = [
    (RTNStorage(2, 32), Type.Q4_0),
    (RTNStorage(3, 64), Type.Q4_0),
    (RTNStorage(4, 32, fit=True), Type.Q4_0),
    (RTNStorage(4, None), Type.Q4_0),
    (RTNStorage(5, 32), Type.Q5_0),
    (RTNStorage(6, None), Type.Q8_0),
    (RTNStorage(8, 64), Type.Q8_0),
    (RTNStorage(2, 32, zero_points=True), Type.Q4_0),
    (RTNStorage(3, 32, zero_points=True), Type.Q4_0),
    (RTNStorage(6, 64, zero_points=True), Type.Q8_0),
]


@torch.no_grad()
def test_codes_are_carried_to_the_last_bit(tmp_path: Path) -> None:
    model = exported([storage for storage, _ in SYMMETRIC], tmp_path)
    found = read(tmp_path / "out" / "model.gguf")
    types = set()
    for name, part, layer in matrices(model):
        kind, W = found[name]
        assert torch.equal(in_our_order(W, part), layer.factor("out", torch.float32))
        types.add((layer.code_bits, kind))
    assert types == {(storage.code_bits, kind) for storage, kind in SYMMETRIC}  # type: ignore[attr-defined]
    assert not (tmp_path / "out" / "lora.gguf").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert " matrices in Q5_0: all bits" in card
    assert "llama-cli -m FOLDER/model.gguf" in card


@torch.no_grad()
def test_what_cannot_be_carried_is_rounded_and_said(tmp_path: Path) -> None:
    storages: list[Storage] = [
        RTNStorage(4, 32, zero_points=True),
        RTNStorage(5, 32, zero_points=True),
        RTNStorage(8, 32, zero_points=True),
        RTNStorage(4, 16),
    ]
    model = exported(storages, tmp_path)
    found = read(tmp_path / "out" / "model.gguf")
    errors: dict[Type, float] = {}
    for name, part, layer in matrices(model):
        kind, W = found[name]
        exact = layer.factor("out", torch.float32)
        error = float((in_our_order(W, part) - exact).norm() / exact.norm())
        errors[kind] = max(error, errors.get(kind, 0))
    assert errors.keys() == {Type.Q4_1, Type.Q5_1, Type.Q8_0}
    assert errors[Type.Q4_1] < 5e-4
    assert errors[Type.Q5_1] < 5e-4
    assert 1e-4 < errors[Type.Q8_0] < 1e-2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "in Q4_1: the codes and steps, and zero points rounded to 16 bits" in card
    assert "in Q8_0: numbers rounded again, to 8 bits" in card


@torch.no_grad()
def test_transformers_reads_the_model(windows: torch.Tensor, tmp_path: Path) -> None:
    model = exported([RTNStorage(4, 32), RTNStorage(8, 32), RTNStorage(3, 32)], tmp_path)
    how = {"gguf_file": "model.gguf", "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **how)
    torch.testing.assert_close(theirs(windows).logits, model(windows).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("factors", "rank", "types"),
    [
        ({"factor_bits": 8}, 32, {(Type.Q8_0, Type.Q8_0)}),
        ({"factor_bits": 4, "factor_group": 32}, 32, {(Type.Q8_0, Type.Q8_0)}),
        ({"factor_bits": 8}, 24, {(Type.Q8_0, Type.F32)}),  # a row of A is no whole block
        ({"factor_bits": 16}, 24, {(Type.F32, Type.F32)}),
    ],
)
@torch.no_grad()
def test_corrections_are_a_lora(factors: dict[str, int], rank: int, types: set[Any], tmp_path: Path) -> None:
    model = exported([ResidualStorage(4, 32, **NEAREST, **factors)], tmp_path, rank)
    base, lora = read(tmp_path / "out" / "model.gguf"), read(tmp_path / "out" / "lora.gguf")
    found = set()
    for name, part, layer in matrices(model):
        assert isinstance(layer, ResidualLinear)
        (kind_B, B), (kind_A, A) = lora.pop(f"{name}.lora_a"), lora.pop(f"{name}.lora_b")
        whole = in_our_order(base[name][1] + A @ B, part)
        torch.testing.assert_close(whole, layer.weight, rtol=1e-5, atol=1e-6)
        found.add((kind_B, kind_A))
        assert base[name][0] is Type.Q4_0
    assert found == types
    assert not lora
    keys = GGUFReader(tmp_path / "out" / "lora.gguf").fields
    said = {key: keys[key].contents() for key in ("general.type", "general.architecture", "adapter.type")}
    assert said == {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    assert keys["adapter.lora.alpha"].contents() == 0


def test_what_was_not_compressed_is_the_donors(tmp_path: Path) -> None:
    exported([RTNStorage(4, 32)], tmp_path)
    dense, ours = GGUFReader(tmp_path / "dense.gguf"), GGUFReader(tmp_path / "out" / "model.gguf")
    changed = {"general.file_type", "GGUF.kv_count"}
    for key, field in dense.fields.items():
        if key not in changed:
            assert ours.fields[key].contents() == field.contents(), key
    tensors = {part.name: part for part in ours.tensors}
    assert tensors.keys() == {part.name for part in dense.tensors}
    for part in dense.tensors:
        if "norm" in part.name or not part.name.startswith("blk."):
            assert (tensors[part.name].data == part.data).all()


def rounded_file(source: Path, path: Path, kind: Type) -> None:
    """The file `source` with its matrices in `kind`."""
    reader, writer = GGUFReader(source), GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    for part in reader.tensors:
        own = kind if len(part.shape) == 2 else part.tensor_type
        writer.add_tensor(part.name, quantize(part.data, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", [Type.Q4_1, Type.Q5_0, Type.Q8_0, Type.BF16])
@torch.no_grad()
def test_the_donor_may_be_rounded_itself(kind: Type, windows: torch.Tensor, tmp_path: Path) -> None:
    write_llama(tmp_path / "plain.gguf", wide_model())
    rounded_file(tmp_path / "plain.gguf", tmp_path / "dense.gguf", kind)
    model = load_model(ModelConfig("tiny", str(tmp_path / "dense.gguf")), torch.bfloat16, torch.device("cpu"))
    checkpoint.save(model, None, tmp_path / "run", in_codes(model, [RTNStorage(8, 32)], 0))
    export(tmp_path)
    found = read(tmp_path / "out" / "model.gguf")
    assert found["token_embd.weight"][0] is kind
    for name, part, layer in matrices(model):
        assert torch.equal(in_our_order(found[name][1], part), layer.factor("out", torch.float32))


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
def test_pairs_are_refused_before_anything_is_loaded(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = wide_model()
    write_llama(tmp_path / "dense.gguf", model)
    checkpoint.save(model, None, tmp_path / "run", in_codes(model, [storage], 8))
    monkeypatch.setattr(publish, "load", None)
    with pytest.raises(UserError, match=r"as \S+_proj is: use format=dense, .* or compress with storage=residual, "):
        export(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_donor_of_another_model_is_refused(tmp_path: Path) -> None:
    exported([RTNStorage(4, 32)], tmp_path)
    write_llama(tmp_path / "other.gguf", wide_model(seed=1))
    with pytest.raises(
        UserError, match=r"other\.gguf is not the dense model of this run, or rounded too far: \S+ differs; "
    ):
        export(tmp_path, gguf=str(tmp_path / "other.gguf"), to=str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gguf": None}, "^format=gguf needs gguf=FILE, the dense model's own GGUF file"),
        ({"gguf": "nowhere.gguf"}, r"^gguf=nowhere\.gguf is not a file$"),
        ({"gguf": "model.safetensors"}, r"^gguf=model\.safetensors is no GGUF file"),
        ({"format": Format.dense}, r"^gguf=.*dense\.gguf has no effect with format=dense$"),
    ],
)
def test_mistakes(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        export(tmp_path, **options)
