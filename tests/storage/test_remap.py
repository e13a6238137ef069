"""Remapped storage: the published bits, rounding within half a step, and checkpoints of the same size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.models.factors import Factors
from svdexp.models.portable.svdexp_remap import RemapLinear
from svdexp.runtime.errors import UserError
from svdexp.storage import RemapStorage, stored_bits
from tests.conftest import tiny_model
from tests.storage.test_pivot import random_factors
from tests.test_compress import WHITENED

REMAPPED = replace(WHITENED, storage=RemapStorage())
SHAPES = [(7, 5, 3), (5, 7, 3), (6, 6, 4), (9, 4, 1), (4, 9, 1), (1, 8, 1), (40, 30, 29)]


def build(factors: Factors, dtype: torch.dtype = torch.float32, bias: torch.Tensor | None = None) -> RemapLinear:
    m, n = factors.A.shape[0], factors.B.shape[1]
    return RemapStorage().layer(factors, bias, torch.empty(m, n, dtype=dtype))


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_the_papers_and_the_scales(m: int, n: int, rank: int, dtype: torch.dtype) -> None:
    layer = build(random_factors(m, n, rank), dtype, bias=torch.randn(m))
    assert stored_bits(layer) == RemapStorage().bits(rank, m, n) == 16 * rank * max(m, n) + 16 * rank
    assert 8 * sum(buffer.nbytes for buffer in layer.buffers()) == stored_bits(layer)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
@pytest.mark.parametrize("spread", [0, 6])
def test_rounding_is_at_most_half_a_step_of_each_component(m: int, n: int, rank: int, spread: int) -> None:
    """Component by component, because the balance may move magnitude between A and B but not between components."""
    factors = random_factors(m, n, rank)
    factors = Factors(factors.A * torch.logspace(0, -spread, rank, dtype=torch.float64), factors.B)
    A, B = (build(factors).factor(side, torch.float64) for side in ("out", "in"))
    side = min(m, n)
    for i in range(rank):
        a, b = factors.A[:, i], factors.B[i]
        # |Δa bᵀ + a Δbᵀ + Δa Δbᵀ| ≤ half a step of each square part, half a unit in the last place of the rest
        da = torch.full_like(a, float(a[:side].abs().max()) / 127 * 0.51)
        db = torch.full_like(b, float(b[:side].abs().max()) / 127 * 0.51)
        da[side:], db[side:] = a[side:].abs() * 2**-10 + 1e-7, b[side:].abs() * 2**-10 + 1e-7
        bound = da[:, None] * b.abs() + a.abs()[:, None] * db + da[:, None] * db + 1e-8
        assert bool(((torch.outer(A[:, i], B[i]) - torch.outer(a, b)).abs() <= bound).all())


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (6, 6)])
def test_layer_computes_a_b_x_plus_bias(m: int, n: int) -> None:
    bias, x = torch.randn(m), torch.randn(2, 4, n)
    layer = build(random_factors(m, n, 3), bias=bias)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + bias)
    assert layer.weight.shape == (m, n)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_cast_of_the_model_leaves_what_is_stored() -> None:
    layer = build(random_factors(9, 4, 3))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.double().half().float()
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_components_of_zeros_stay_zeros() -> None:
    factors = random_factors(6, 9, 3)
    A = factors.A.clone()
    A[:, 1] = 0
    layer = build(Factors(A, factors.B))
    torch.testing.assert_close(layer.weight.double(), A @ factors.B, rtol=0.05, atol=0.05)
    assert build(Factors(torch.zeros(6, 3), torch.zeros(3, 9))).weight.abs().max() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e12])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    factors = random_factors(9, 4, 2)
    factors.A[8, 0] = value
    with pytest.raises(UserError, match=r"storage=remap .* shape \(9, 4\) at rank 2"):
        build(factors)


@pytest.mark.parametrize("ratio", [0.4, 0.8])
def test_rank_is_the_ratio_of_the_shorter_side(model: PreTrainedModel, windows: torch.Tensor, ratio: float) -> None:
    result = compress(model, windows, REMAPPED, ratio)
    assert 0.95 * ratio < result.achieved_ratio <= ratio
    for name, rank in result.ranks.items():
        layer = model.get_submodule(name)
        if rank is not None:
            side = min(layer.in_features, layer.out_features)
            assert abs(rank - ratio * side) <= 2


def test_checkpoint_holds_the_promised_bits_and_gives_the_same_logits(
    windows: torch.Tensor, tmp_path: Path, tokenizer: object
) -> None:
    """For every matrix, bytes on disk × 8 ≤ 16 r max(m, n) + the scales."""
    model = tiny_model("llama_gqa")
    result = compress(model, windows, REMAPPED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    for name, rank in result.ranks.items():
        if rank is not None:
            layer = model.get_submodule(name)
            stored = 8 * sum(size for key, size in sizes.items() if key.startswith(f"{name}."))
            assert stored <= 16 * rank * max(layer.in_features, layer.out_features) + 16 * rank
    loaded, _ = svdexp.load(tmp_path)
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    narrow, _ = svdexp.load(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(narrow(windows).logits.float(), model(windows).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("part", ["scale", "rest"])
def test_numbers_that_are_not_finite_are_found(part: str) -> None:
    layer = build(random_factors(9, 4, 2))
    layer.validate()
    layer.get_buffer(part).view(torch.float16).flatten()[-1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        layer.validate()


def test_a_damaged_checkpoint_is_refused(windows: torch.Tensor, tmp_path: Path, tokenizer: object) -> None:
    model = tiny_model("llama_gqa")
    checkpoint.save(model, tokenizer, tmp_path, compress(model, windows, REMAPPED, 0.5).ranks)
    tensors = load_file(tmp_path / "model.safetensors")
    scale = next(key for key in tensors if key.endswith(".scale"))
    tensors[scale][0] = torch.tensor([torch.inf], dtype=torch.float16).view(torch.int16)[0]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not finite"):
        svdexp.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {entry["storage"] for entry in config["svdexp"]["layers"].values()} == {"remap"}
