"""Codes and a correction: the optimum of what rounding leaves, by brute force and QERA's formula; saved and loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import svdexp
from svdexp.allocation import Uniform
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.factorisation import Identity, InputMoment, Metric, TwoSided
from svdexp.factorisation.decompose import decompose
from svdexp.factorisation.loss import loss
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.portable.svdexp_residual import ResidualLinear
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.storage import ResidualStorage, stored_bits
from svdexp.storage.residual import Rounding
from svdexp.storage.rounding import gptq, to_nearest
from tests.conftest import tiny_model
from tests.storage.test_pivot import random_factors
from tests.storage.test_rounding import correlated, drawn

STORAGES = [
    ResidualStorage(4, 8, factor_bits=16),
    ResidualStorage(3, 5, zero_points=True, factor_bits=8),
    ResidualStorage(2, None, rounding=Rounding.nearest, factor_bits=4, factor_group=3),
]
METHOD = Method("residual", TwoSided(), Uniform(), ResidualStorage(3, 8, factor_bits=16))


def moment(width: int, seed: int) -> torch.Tensor:
    X = drawn(3 * width, width, seed=seed) @ drawn(width, width, seed=seed + 1)
    return X.T @ X / len(X)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize(("m", "n", "rank"), [(7, 13, 3), (13, 7, 1), (24, 40, 24)])
def test_bits_are_those_of_the_tensors(storage: ResidualStorage, m: int, n: int, rank: int) -> None:
    W, bias = drawn(m, n), torch.randn(m)
    _, kept = storage.target(W, correlated(n))
    layer = storage.layer(random_factors(m, n, rank), bias, W.float(), kept)
    assert stored_bits(layer) == storage.bits(rank, m, n)
    layer.validate()


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_the_layer_is_codes_and_factors(storage: ResidualStorage) -> None:
    W, bias, factors, x = drawn(7, 13), torch.randn(7), random_factors(7, 13, 3), torch.randn(2, 4, 13)
    rest, kept = storage.target(W, correlated(13))
    layer = storage.layer(factors, bias, W.float(), kept)
    held = storage.rounded_factors(factors)
    torch.testing.assert_close(layer.weight, (W - rest + held.A @ held.B).float())
    torch.testing.assert_close(layer(x), x @ layer.weight.T + bias, rtol=1e-4, atol=1e-4)
    exact = gptq(W, correlated(13), storage.grid) if storage.rounding is Rounding.gptq else to_nearest(W, storage.grid)
    assert torch.equal(W - rest, storage.grid.numbers(exact))
    again, same = storage.target(W, kept=kept)
    assert torch.equal(again, rest)
    assert same is kept


@pytest.mark.parametrize("sides", ["both", "inputs"])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_correction_is_the_weighted_optimum(sides: str, rank: int) -> None:
    """Against the truncated SVD of the whitened rest in float64, its loss, and corrections near it."""
    W, C = drawn(12, 20), moment(20, 5)
    G = moment(12, 9) if sides == "both" else torch.eye(12, dtype=torch.float64)
    rest, _ = ResidualStorage(2, 10).target(W, C)
    metric = Metric(G if sides == "both" else None, C)
    found = decompose(rest, metric, torch.float64).truncate(rank)
    L, R = torch.linalg.cholesky(G).mT, torch.linalg.cholesky(C)
    U, S, Vt = torch.linalg.svd(L @ rest @ R)
    brute = torch.linalg.solve(L, (U[:, :rank] * S[:rank]) @ Vt[:rank]) @ torch.linalg.inv(R)
    torch.testing.assert_close(found.A @ found.B, brute, rtol=1e-6, atol=1e-8)
    least = loss(rest - found.A @ found.B, metric)
    assert least == pytest.approx(float(S[rank:].square().sum()))
    for seed in range(20):
        other = found.A + 1e-3 * drawn(12, rank, seed=seed)
        assert loss(rest - other @ found.B, metric) > least


def test_on_inputs_alone_it_is_qera() -> None:
    """QERA-exact (2410.06040): SVD_r(D C^½), taken off by C^-½, here by eigenvectors of C."""
    W, C = drawn(12, 20), moment(20, 5)
    rest, kept = ResidualStorage(2, 10, rounding=Rounding.nearest, factor_bits=16).target(W)
    values, V = torch.linalg.eigh(C)
    half, inverse = V * values.sqrt() @ V.T, V * values.rsqrt() @ V.T
    U, S, Vt = torch.linalg.svd(rest @ half, full_matrices=False)
    found = decompose(rest, Metric(right=C), torch.float64).truncate(4)
    torch.testing.assert_close(found.A @ found.B, (U[:, :4] * S[:4]) @ Vt[:4] @ inverse, rtol=1e-6, atol=1e-8)
    assert kept.keys() == {"codes", "scale"}


@pytest.mark.parametrize(
    "storage", [ResidualStorage(3, 8, factor_bits=16), ResidualStorage(4, 8, factor_bits=8)], ids=str
)
def test_saved_it_loads_in_svdexp_and_in_transformers(
    storage: ResidualStorage, windows: torch.Tensor, tmp_path: Path
) -> None:
    model = tiny_model("llama_gqa")
    done = compress(model, windows, replace(METHOD, storage=storage), 0.5)
    assert all(isinstance(layer.layer(model), ResidualLinear) for layer in done.layers)
    assert done.bits == sum(storage.bits(done.ranks[x.name] or 0, x.m, x.n) for x in done.layers)
    assert done.achieved_ratio <= 0.5
    checkpoint.save(model, None, tmp_path, done.ranks)
    ours, _ = svdexp.load(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(ours(windows).logits, model(windows).logits)
    assert torch.equal(theirs(windows).logits, model(windows).logits)


def test_through_the_engine_it_is_gptq_and_the_optimum(windows: torch.Tensor, tmp_path: Path) -> None:
    """And a second run, which reads codes and components from the cache, gives the same."""
    dense, weights = tiny_model("llama_gqa"), []
    for _ in range(2):
        model = tiny_model("llama_gqa")
        done = compress(model, windows, replace(METHOD, weighting=InputMoment()), 0.6, cache=Cache(tmp_path))
        weights.append(LINEAR.weight(model.model.layers[0].self_attn.q_proj))
    assert torch.equal(*weights)
    name = "model.layers.0.self_attn.q_proj"
    inputs: list[torch.Tensor] = []
    dense.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _, args, out: inputs.append(args[0]))
    dense(windows)
    x = inputs[0].flatten(0, 1).double()
    C, W, rank = x.T @ x / len(x), LINEAR.weight(dense.get_submodule(name)), done.ranks[name]
    assert rank is not None
    Q = METHOD.storage.grid.numbers(gptq(W, C, METHOD.storage.grid))
    optimum = decompose(W - Q, Metric(right=C), torch.float64).truncate(rank)
    torch.testing.assert_close(weights[0].double(), Q + optimum.A @ optimum.B, atol=1e-3, rtol=1e-3)


def test_gptq_takes_inputs_whatever_the_weighting(windows: torch.Tensor) -> None:
    done = compress(tiny_model("llama_gqa"), windows, replace(METHOD, weighting=Identity()), 0.5)
    assert done.achieved_ratio <= 0.5


def test_a_group_of_plain_factors_is_refused() -> None:
    with pytest.raises(UserError, match=r"storage\.factor_group=8 has no effect, because storage\.factor_bits is 16"):
        ResidualStorage(factor_bits=16, factor_group=8)
