"""IPCA: activation truncation is weight truncation; principal components against numpy; the paper's identity."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from svdexp.allocation import GlobalLoss, Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.factorisation.decompose import decompose
from svdexp.factorisation.weighting import Metric
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage
from svdexp.update import IPCA
from svdexp.update.ipca import Components, reduced
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at

DOBI = Method("dobi_uniform", None, Uniform(), FactorStorage(), IPCA())


def samples(m: int, n: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m + n)
    X = torch.randn(tokens, n, generator=generator, dtype=torch.float64)
    return torch.randn(m, n, generator=generator, dtype=torch.float64), X * torch.logspace(0, -1.5, n).double()


@pytest.mark.parametrize(("m", "n", "tokens"), [(7, 12, 40), (12, 7, 40), (9, 9, 40), (7, 12, 5), (12, 7, 5)])
def test_truncating_activations_is_truncating_the_whitened_weight(m: int, n: int, tokens: int) -> None:
    """On the sequence itself: the best rank-r approximation of Y = X Wᵀ is X W'ᵀ with the whitened optimum W'."""
    W, X = samples(m, n, tokens)
    part = Components(W, 3, by_energy=False)
    found = part.truncate(X, X @ W.T)
    U, S, Vh = torch.linalg.svd(X @ W.T, full_matrices=False)
    torch.testing.assert_close(found, (U[:, :3] * S[:3]) @ Vh[:3])
    whitened = decompose(W, Metric(right=X.T @ X / tokens), torch.float64).truncate(3)
    torch.testing.assert_close(found, X @ (whitened.A @ whitened.B).T, rtol=1e-5, atol=1e-6)
    factors = part.factors()  # one sequence: its own vectors are the components
    torch.testing.assert_close(factors.A @ factors.B, whitened.A @ whitened.B, rtol=1e-4, atol=1e-5)


def loss(W: torch.Tensor, X: torch.Tensor, approximation: torch.Tensor) -> float:
    return float((X @ (W - approximation).T).norm() / (X @ W.T).norm())


@pytest.mark.parametrize(("m", "n"), [(10, 16), (16, 10)])
def test_by_energy_the_components_of_many_sequences_are_nearly_the_whitened_optimum(m: int, n: int) -> None:
    """Within 2 % of the smallest error over all sequences, although each sequence kept only 5 of 10 directions."""
    W, X = samples(m, n, 400)
    part = Components(W, 5, by_energy=True)
    for sequence in X.split(50):
        part.truncate(sequence, sequence @ W.T)
    best = decompose(W, Metric(right=X.T @ X), torch.float64).truncate(5)
    found = part.factors()
    assert loss(W, X, best.A @ best.B) <= loss(W, X, found.A @ found.B) <= 1.02 * loss(W, X, best.A @ best.B)


def components(outputs: list[torch.Tensor], rank: int, by_energy: bool) -> np.ndarray:
    """V (rank, m): the principal directions (uncentred) of every sequence's leading vectors, by numpy's SVD."""
    gathered = []
    for Y in outputs:
        _, S, Vh = np.linalg.svd(Y.double().numpy(), full_matrices=False)
        gathered.append(Vh[:rank] * (S[:rank, None] if by_energy else 1.0))
    return np.linalg.svd(np.concatenate(gathered))[2][:rank]


@pytest.mark.parametrize("by_energy", [False, True])
@pytest.mark.parametrize(("m", "n"), [(8, 12), (12, 8)])
def test_components_are_those_of_all_gathered_vectors(m: int, n: int, by_energy: bool) -> None:
    """Of sequences whose energies and directions differ, so that it matters what each vector counts."""
    W, X = samples(m, n, 120)
    part = Components(W, 3, by_energy)
    sequences = [4.0**index * X.roll(3 * index, 1) for index, X in enumerate(X.split(30))]
    for sequence in sequences:
        part.truncate(sequence, sequence @ W.T)
    V, other = (components([X @ W.T for X in sequences], 3, flag) for flag in (by_energy, not by_energy))
    factors = part.factors()
    np.testing.assert_allclose((factors.A @ factors.B).numpy(), V.T @ V @ W.numpy(), atol=1e-6)
    assert np.abs(other.T @ other - V.T @ V).max() > 0.05


@pytest.mark.parametrize("by_energy", [False, True])
def test_the_engine_gathers_along_the_truncated_model(windows: torch.Tensor, by_energy: bool) -> None:
    """Brute force: whole passes of the model, whose layers' outputs are truncated sequence by sequence, by numpy."""
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.2.self_attn.q_proj"]
    model, brute = tiny_model("llama_gqa"), tiny_model("llama_gqa")
    update = IPCA(samples=4, by_energy=by_energy)
    ranks = compress(model, windows, replace(DOBI, update=update), 0.5, targets=Targets(include=names)).ranks
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def truncated(name: str) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            outputs[name].append(output[0])
            U, S, Vh = np.linalg.svd(output[0].double().numpy(), full_matrices=False)
            rank = ranks[name]
            return torch.from_numpy((U[:, :rank] * S[:rank]) @ Vh[:rank]).float()[None]

        return hook

    for name in names:
        brute.get_submodule(name).register_forward_hook(truncated(name))
    for window in windows[:4]:  # of six
        brute(window[None])
    for name in names:
        W = LINEAR.weight(brute.get_submodule(name)).double().numpy()
        V = components(outputs[name], ranks[name] or 0, by_energy)
        found = LINEAR.weight(model.get_submodule(name)).double().numpy()
        assert np.linalg.norm(found - V.T @ V @ W) < 1e-3 * np.linalg.norm(W), name


@pytest.mark.parametrize("by_energy", [False, True])
def test_every_architecture(model: PreTrainedModel, windows: torch.Tensor, by_energy: bool) -> None:
    """W' = V Vᵀ W is a projection of W onto r of its outputs, and biases stay what and where they were.

    Which projection it is the engine's test says.
    """
    dense = {name: module for name, module in model.named_modules() if LINEAR.is_dense(module)}
    result = compress(model, windows, replace(DOBI, update=IPCA(by_energy=by_energy)), 0.6)
    assert 0.55 < result.achieved_ratio <= 0.6
    assert result.errors == {}
    assert torch.isfinite(model(windows).logits).all()
    for name, rank in result.ranks.items():
        if rank is not None:
            layer, W = model.get_submodule(name), LINEAR.weight(dense[name])
            V, _ = torch.linalg.qr(layer.rank_out.weight)
            torch.testing.assert_close(layer.weight, V @ V.T @ W, rtol=1e-3, atol=1e-5)
            bias = dense[name].bias
            assert bias is None or torch.equal(layer.rank_out.bias, bias)


@pytest.mark.parametrize(("m", "n"), [(6, 9), (9, 6)])
def test_what_saw_no_token_keeps_the_largest_components_of_its_weight(m: int, n: int) -> None:
    """As an expert that none chose: by Eckart and Young the best there is without any data."""
    W, _ = samples(m, n, 1)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    found = Components(W, 2, by_energy=False).factors()
    torch.testing.assert_close(found.A @ found.B, (U[:, :2] * S[:2]) @ Vh[:2])


@pytest.mark.parametrize("smallest", [1e-2, 1e-7])
def test_tall_weights_lose_no_digits(smallest: float) -> None:
    """P = Q T with orthonormal Q, also where the square of P has no more digits for its smallest direction."""
    U, _ = torch.linalg.qr(torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    P = U * torch.logspace(0, math.log10(smallest), 5, dtype=torch.float64) @ torch.linalg.qr(U[:5])[0]
    T, lift = reduced(P)
    eye = torch.eye(5, dtype=torch.float64)
    Q = lift(eye)
    torch.testing.assert_close(Q.T @ Q, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(Q @ T, P, rtol=0, atol=1e-12)


def test_its_cost_is_what_torch_counts() -> None:
    workload = workload_at(tiny_model("llama_gqa"), 0.9, windows=3, length=24)
    found, counted = IPCA().cost(workload), 0
    for layer in workload.layers:
        X = torch.randn(1, 24, layer.n)
        part = Components(torch.randn(layer.m, layer.n), workload.rank(layer), by_energy=False)
        with FlopCounterMode(display=False) as counter:
            part.truncate(X, torch.empty(1, 24, layer.m))
        counted += 3 * counter.get_total_flops()
    assert 0.5 < (found.float32 + found.float64) / counted < 2
    passes = workload.forward(3, head=False)
    assert found.model == passes.model
    assert IPCA(samples=2).cost(workload).model == pytest.approx(2 / 3 * passes.model)


def test_full_rank_changes_nothing() -> None:
    """All directions kept: V Vᵀ = I."""
    for W in (torch.randn(6, 9), torch.randn(9, 6)):
        part = Components(W, 6, by_energy=False)
        X = torch.randn(30, W.shape[1])
        torch.testing.assert_close(part.truncate(X, X @ W.T), X @ W.T, rtol=1e-4, atol=1e-4)
        found = part.factors()
        torch.testing.assert_close((found.A @ found.B).float(), W, rtol=1e-4, atol=1e-4)


def test_one_layer_is_the_whitened_optimum_on_one_window(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """Through the engine: with nothing truncated before it, IPCA on one window is SVD-LLM on that window."""
    name = "model.layers.0.self_attn.q_proj"
    whitened = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    targets = Targets(include=[name])
    weights = []
    for method in (DOBI, whitened):
        other = tiny_model("llama_gqa")
        compress(other, windows[:1], method, 0.6, targets=targets)
        weights.append(LINEAR.weight(other.get_submodule(name)))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def test_it_repairs_other_methods_ranks(windows: torch.Tensor) -> None:
    """kron's ranks, Dobi's factors: those that it finds when it is given these ranks and nothing of kron's."""
    method = Method("kron", TwoSided(), GlobalLoss(), FactorStorage())
    plain = compress(tiny_model("llama_gqa"), windows, method, 0.6)
    model = tiny_model("llama_gqa")
    repaired = compress(model, windows, replace(method, update=IPCA()), 0.6)
    assert repaired.ranks == plain.ranks
    dobi = tiny_model("llama_gqa")
    compress(dobi, windows, DOBI, 0.6, targets=Targets(ranks=plain.ranks))
    for name in plain.ranks:
        torch.testing.assert_close(LINEAR.weight(model.get_submodule(name)), LINEAR.weight(dobi.get_submodule(name)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"update": None}, "method.weighting=null needs an update that makes factors"),
        ({"allocation": GlobalLoss()}, "method.allocation=GlobalLoss looks at weighted spectra"),
    ],
)
def test_without_a_weighting_nothing_may_need_one(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(DOBI, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="save=elastic keeps weighted components"):
        DOBI.require_elastic({})
    with pytest.raises(UserError, match="samples must be at least 1"):
        IPCA(samples=0)
