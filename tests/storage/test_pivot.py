"""Pivot storage: nothing is lost, coefficients are bounded, the price is what is stored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import svdexp
from svdexp.allocation import Budget, Uniform
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.models.factors import Factors
from svdexp.models.portable.svdexp_pivot import PivotLinear
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, PivotStorage, stored_bits
from svdexp.storage.pivot import LIMIT, _first_largest
from tests.conftest import tiny_model
from tests.test_compress import WHITENED

PIVOTED = replace(WHITENED, storage=PivotStorage())
LAYER = "model.layers.0.mlp.up_proj"

SHAPES = [(7, 5, 3), (5, 7, 3), (6, 6, 3), (9, 4, 1), (4, 9, 1), (1, 8, 1), (40, 30, 29), (30, 40, 29), (64, 64, 63)]


def random_factors(m: int, n: int, rank: int) -> Factors:
    generator = torch.Generator().manual_seed(m * n + rank)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, rank), (rank, n)))
    return Factors(A, B)


def build(factors: Factors, dtype: torch.dtype = torch.float64, bias: torch.Tensor | None = None) -> Any:
    m, n = factors.A.shape[0], factors.B.shape[1]
    return PivotStorage().layer(factors, bias, torch.empty(m, n, dtype=dtype))


def assert_lossless(factors: Factors) -> None:
    """The stored layer is A B to float64 rounding, with bounded coefficients."""
    layer, W = build(factors), factors.A @ factors.B
    layer.validate()
    torch.testing.assert_close(layer.weight, W, rtol=0, atol=1e-12 * float(1 + W.abs().max()))
    assert bool((layer.coefficients.weight.abs() <= LIMIT).all())


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_nothing_is_lost(m: int, n: int, rank: int) -> None:
    assert_lossless(random_factors(m, n, rank))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_full_rank_has_no_coefficients() -> None:
    factors = random_factors(7, 5, 5)
    torch.testing.assert_close(build(factors).weight, factors.A @ factors.B)
    assert build(factors)(torch.ones(2, 5, dtype=torch.float64)).shape == (2, 7)


@pytest.mark.parametrize("true_rank", [0, 1, 5, 9])
def test_a_matrix_of_lower_rank_than_asked(true_rank: int) -> None:
    """Factors of inner rank 10 whose product has less, by A, by B and by both."""
    full, low = random_factors(30, 24, 10), random_factors(10, 10, max(true_rank, 1))
    project = low.A @ low.B * (true_rank > 0)
    for factors in (
        Factors(full.A @ project, full.B),
        Factors(full.A, project @ full.B),
        Factors(full.A @ project, project @ full.B),
        Factors(full.A, full.B * torch.logspace(0, -18, 10, dtype=torch.float64)[:, None]),
    ):
        assert_lossless(factors)


@pytest.mark.parametrize("rank", [10, 40, 200])
def test_coefficients_stay_bounded_where_elimination_alone_lets_them_grow(rank: int) -> None:
    """1 above −0.9, without ties: elimination alone is content with the first columns, whose coefficients explode."""
    n = rank + 20
    B = (torch.eye(n, rank, dtype=torch.float64) - 0.9 * torch.ones(n, rank, dtype=torch.float64).tril(-1)).T
    if rank < 50:  # beyond, they exceed what float64 can solve for
        assert float(torch.linalg.solve(B[:, :rank], B[:, rank:]).abs().max()) > 0.9 * 1.9 ** (rank - 2)
    assert_lossless(Factors(random_factors(n, n, rank).A, B))
    assert_lossless(Factors(B.T, random_factors(n, n + 1, rank).B))


def test_equal_and_zero_columns() -> None:
    factors = random_factors(12, 20, 6)
    B = factors.B.clone()
    B[:, 5:15], B[:, 15:18] = B[:, :1], 0
    assert_lossless(Factors(factors.A, B))


def test_columns_of_very_different_size() -> None:
    """A column of 1e-8 is a combination of the pivots as any other, and as exact beside its own size."""
    factors = random_factors(12, 20, 6)
    scale = torch.logspace(0, -8, 20, dtype=torch.float64)
    layer, W = build(Factors(factors.A, factors.B * scale)), factors.A @ factors.B * scale
    error = (layer.weight - W).norm(dim=0) / W.norm(dim=0)
    assert float(error.max()) < 1e-6


def test_the_shorter_side_has_the_pivots() -> None:
    """The pivots are columns, or rows, of the matrix itself, and the coefficients give the others."""
    tall, wide = random_factors(14, 9, 4), random_factors(9, 14, 4)
    W, layer = tall.A @ tall.B, build(tall)
    pivots, others = layer.order[:4].long(), layer.order[4:].long()
    torch.testing.assert_close(layer.pivots.weight, W[:, pivots])
    torch.testing.assert_close(W[:, others], W[:, pivots] @ layer.coefficients.weight)
    W, layer = wide.A @ wide.B, build(wide)
    pivots, others = layer.order.argsort()[:4], layer.order.argsort()[4:]
    torch.testing.assert_close(layer.pivots.weight, W[pivots])
    torch.testing.assert_close(W[others], layer.coefficients.weight @ W[pivots])


def test_factors_that_are_not_finite_are_refused() -> None:
    factors = random_factors(9, 14, 4)
    with pytest.raises(UserError, match=r"storage=pivot .* shape \(9, 14\) at rank 4"):
        build(Factors(factors.A, factors.B * torch.nan))


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_the_layer_it_builds(m: int, n: int, rank: int, dtype: torch.dtype) -> None:
    layer = build(random_factors(m, n, rank), dtype, bias=torch.randn(m))
    expected = rank * (m + n - rank) * 16 + 16 * min(m, n)
    assert stored_bits(layer) == PivotStorage().bits(rank, m, n) == expected


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (6, 6)])
def test_layer_computes_w_x_plus_bias(m: int, n: int) -> None:
    factors, bias = random_factors(m, n, 3), torch.randn(m)
    layer = build(factors, torch.float32, bias)
    W = (factors.A @ factors.B).float()
    for shape in ((n,), (4, n), (2, 4, n)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), x @ W.T + bias)
        torch.testing.assert_close(build(factors, torch.float32)(x), x @ W.T)
    assert all(type(child) is nn.Linear for child in layer.children())
    assert sum(name.endswith("bias") for name, _ in layer.named_parameters()) == 1


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7)])
def test_gradients_reach_both_parts(m: int, n: int) -> None:
    layer = build(random_factors(m, n, 3), torch.float32).requires_grad_(True)
    x = torch.randn(4, n, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(4, n))
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(("m", "n"), [(96, 80), (80, 96)])
def test_sixteen_bits_cost_little_more_than_for_a_dense_matrix(m: int, n: int) -> None:
    """Errors of P meet |c| ≤ LIMIT and those of C are summed over r pivots: a few roundings, not many."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, 48, dtype=torch.float64)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, 48), (48, n)))
    factors = Factors(A * decay.sqrt(), B * decay.sqrt()[:, None])
    W = factors.A @ factors.B
    rounded = build(factors, torch.bfloat16).double().weight
    dense = float((W.bfloat16().double() - W).norm())
    assert dense < float((rounded - W).norm()) < 5 * dense


def test_casting_leaves_the_order_alone() -> None:
    layer = build(random_factors(7, 5, 3), torch.float32)
    order = layer.order.clone()
    assert torch.equal(layer.to(torch.bfloat16).order, order)
    assert torch.equal(layer.half().order, order)
    assert layer.order.dtype == torch.int16
    layer.validate()


@pytest.mark.parametrize(("width", "index"), [(2**15, torch.int16), (2**15 + 1, torch.int32)])
def test_indices_are_as_narrow_as_they_can_be(width: int, index: torch.dtype) -> None:
    """The largest of as many as int16 can number is 32,767."""
    layer = build(Factors(torch.ones(width, 1), torch.ones(1, width)), torch.float32)
    assert layer.order.dtype is index
    layer.validate()


def test_every_rank_costs_more_than_the_one_before_and_less_than_factors() -> None:
    m, n = 96, 64
    prices = [PivotStorage().bits(rank, m, n) for rank in range(1, n)]
    assert prices == sorted(set(prices))
    # n indices of 16 bits are n numbers, and r² numbers are saved.
    assert all(prices[rank - 1] < FactorStorage().bits(rank, m, n) for rank in range(1, n) if rank * rank > n)


def test_uniform_rank_is_the_largest_that_fits() -> None:
    """r (8192 − r) + 4096 ≤ 0.5 · 4096²: r = 1198, where factors have 1024."""
    shapes = {"q": (4096, 4096)}
    (rank,) = Uniform()(Budget(0.5, shapes, PivotStorage()), None).values()  # type: ignore[arg-type]
    assert rank == 1198


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_more_rank_for_the_same_ratio(model: PreTrainedModel, windows: torch.Tensor, ratio: float) -> None:
    name = model.config.model_type
    result = compress(model, windows, PIVOTED, ratio)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, PivotLinear)}
    assert len(layers) >= 12, name
    assert sum(map(stored_bits, layers.values())) == result.bits
    assert ratio - 0.02 < result.achieved_ratio <= ratio
    assert torch.isfinite(model(windows).logits).all()
    shapes = {key: layer.weight.shape for key, layer in layers.items()}
    plain = Uniform()(Budget(ratio, shapes, FactorStorage()), None)  # type: ignore[arg-type]
    assert sum(filter(None, result.ranks.values())) > sum(filter(None, plain.values()))


@pytest.fixture
def saved(llama: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> Path:
    result = compress(llama, windows, PIVOTED, 0.5)
    checkpoint.save(llama, tokenizer, tmp_path / "checkpoint", result.ranks)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["llama_gqa", "opt", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_is_exact(
    windows: torch.Tensor, tokenizer: Any, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model = tiny_model(name)
    for parameter in model.parameters():  # not model.to(dtype), which would round rotary buffers too
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    result = compress(model, windows, PIVOTED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    loaded, words = svdexp.load(tmp_path)
    assert loaded.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded(windows).logits, model(windows).logits)
    prompt = torch.tensor([words("the rank of a matrix")["input_ids"]])
    assert torch.equal(
        loaded.generate(prompt, max_new_tokens=5, do_sample=False),
        model.generate(prompt, max_new_tokens=5, do_sample=False),
    )


def test_loading_in_another_format_keeps_the_order(saved: Path, llama: PreTrainedModel, windows: torch.Tensor) -> None:
    loaded, _ = svdexp.load(saved, dtype=torch.bfloat16)
    layer = loaded.get_submodule(LAYER)
    assert isinstance(layer, PivotLinear)
    assert layer.pivots.weight.dtype == torch.bfloat16
    assert layer.order.dtype == torch.int16
    assert torch.equal(layer.order, llama.get_submodule(LAYER).order)
    torch.testing.assert_close(loaded(windows).logits.float(), llama(windows).logits, rtol=0.1, atol=0.05)


def test_the_table_names_the_storage_of_each_layer(
    llama: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    """A model of mixed layers loads as it was saved."""
    result = compress(llama, windows, PIVOTED, 0.5)
    up: Any = llama.get_submodule(LAYER)
    rank = result.ranks[LAYER]
    assert rank is not None
    eye = torch.eye(rank)
    factors = Factors(up.pivots.weight, torch.cat([eye, up.coefficients.weight], 1)[:, up.order.argsort()])
    llama.set_submodule(LAYER, FactorStorage().layer(factors, None, up.pivots.weight))
    checkpoint.save(llama, tokenizer, tmp_path / "checkpoint", result.ranks)
    table = json.loads((tmp_path / "checkpoint" / "config.json").read_text())["svdexp"]["layers"]
    assert table.pop(LAYER) == {"storage": "factors", "rank": rank}
    assert {entry["storage"] for entry in table.values()} == {"pivot"}
    assert torch.equal(svdexp.load(tmp_path)[0](windows).logits, llama(windows).logits)


@pytest.mark.parametrize("damage", ["negative", "too large", "twice", "not a number"])
def test_an_order_that_is_no_permutation_is_refused(saved: Path, damage: str) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    order = tensors[f"{LAYER}.order"]
    match damage:
        case "negative":
            order[3] = -1
        case "too large":
            order[3] = len(order)
        case "twice":
            order[3] = order[4]
        case "not a number":  # transformers casts it to integers
            tensors[f"{LAYER}.order"] = order * torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{LAYER} is damaged: .* is not a permutation of 32 indices"):
        svdexp.load(saved)


def test_a_missing_order_is_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    del tensors[f"{LAYER}.order"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"does not match .* {LAYER}\.order"):
        svdexp.load(saved)


@pytest.mark.parametrize("rank", [5, 33, 1000])
def test_a_rank_that_disagrees_with_the_tensors_is_refused(saved: Path, rank: int) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["svdexp"]["layers"][LAYER]["rank"] = rank
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=str(saved)):
        svdexp.load(saved)


def test_names_do_not_end_like_known_projections() -> None:
    """peft and sharding plans match modules by suffix."""
    for name in ("llama", "opt", "gpt2", "gpt_neox"):
        projections = {key.rpartition(".")[2] for key, _ in tiny_model(name).named_modules() if key}
        assert not any(child.endswith(part) for child in ("coefficients", "pivots") for part in projections)


def test_of_several_largest_coefficients_the_first_is_swapped() -> None:
    """Whatever the order in memory; NaN counts as the largest, as torch has it."""
    sizes = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 3.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    assert _first_largest(sizes) == _first_largest(sizes.T.contiguous().T) == 3
    sizes[2, 0] = torch.nan
    assert _first_largest(sizes) == int(sizes.argmax()) == 6
