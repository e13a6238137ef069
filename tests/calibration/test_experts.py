"""Statistics of experts: each its own, lent to those that saw little, and truncations that are optimal under them."""

import logging
from collections import defaultdict

import pytest
import torch
from transformers import PreTrainedModel

import svdexp
from svdexp.calibration.dense import forward_and_backward
from svdexp.calibration.experts import lend, pool
from svdexp.calibration.statistics import GRADIENT_STATISTICS, Gram, SecondMoment
from svdexp.models.behaviour import frozen
from svdexp.models.hooks import gradient_hooks
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.structure import Targets, find_matrices
from tests.support.experts import EXPERTS, experts_in, tiny_experts

Rows = dict[str, list[torch.Tensor]]


def rows_of(model: PreTrainedModel, matrices: list[Matrix], windows: torch.Tensor) -> tuple[Rows, Rows]:
    """What each expert was given, and the gradients at what it gave, token by token, in float64."""
    inputs: Rows = defaultdict(list)
    gradients: Rows = defaultdict(list)

    def see(name: str, x: torch.Tensor | None, g: torch.Tensor) -> None:
        assert x is not None
        inputs[name].extend(x.double())
        gradients[name].extend(g.double())

    with gradient_hooks(layers_of(model, matrices), see, inputs=True), frozen(model):
        for window in windows:
            forward_and_backward(model, window[None])
    return inputs, gradients


def lent(own: dict[str, list[torch.Tensor]], names: list[str], width: int) -> dict[str, torch.Tensor]:
    """(N C + d C̄) / (N + d) of each, by the book."""
    mean = torch.stack([row for name in names for row in own[name]])
    mean = mean.T @ mean / len(mean)
    zero = torch.zeros(width, width, dtype=torch.float64)
    return {
        name: (sum((torch.outer(row, row) for row in own[name]), zero) + width * mean) / (len(own[name]) + width)
        for name in names
    }


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_every_truncation_is_the_optimum_under_the_experts_own_statistics(name: str, windows: torch.Tensor) -> None:
    dense, model = tiny_experts(name), tiny_experts(name)
    matrices = experts_in(dense)
    inputs, gradients = rows_of(dense, matrices, windows)
    result = svdexp.compress(model, windows, method="kron", ratio=0.6, storage="factors")
    assert result.achieved_ratio <= 0.6
    ranks = {matrix.name: result.ranks[matrix.name] for matrix in matrices}
    assert len(set(ranks.values())) > 1  # one price, many ranks
    for stack in {matrix.rivals for matrix in matrices}:
        members = [matrix for matrix in matrices if matrix.rivals == stack]
        names = [matrix.name for matrix in members]
        C, G = lent(inputs, names, members[0].n), lent(gradients, names, members[0].m)
        for matrix in (matrix for matrix in members if ranks[matrix.name] is not None):
            left, right = torch.linalg.cholesky(G[matrix.name]).T, torch.linalg.cholesky(C[matrix.name])
            W = matrix.weight(dense).double()
            lost = torch.linalg.matrix_norm(left @ (W - matrix.weight(model).double()) @ right) ** 2
            energy = torch.linalg.svdvals(left @ W @ right).square()
            torch.testing.assert_close(
                lost, energy[ranks[matrix.name] :].sum(), rtol=1e-3, atol=1e-6 * float(energy.sum())
            )


def test_few_vectors_lean_on_the_mean_and_many_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(count, 4, generator=generator) for count in (0, 2, 4000)]
    moments = [SecondMoment(4, torch.device("cpu")) for _ in rows]
    for moment, part in zip(moments, rows, strict=True):
        moment.add(part)
    own = [moment.result() for moment in moments]
    mean = torch.cat(rows).T @ torch.cat(rows) / 4002
    pool(moments)
    none, few, many = (moment.result() for moment in moments)
    torch.testing.assert_close(none, mean)
    torch.testing.assert_close(few, (2 * own[1] + 4 * mean) / 6)
    torch.testing.assert_close(many, own[2], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("need", ["grad_gram", "clipped_grad_gram"])
def test_gradients_are_lent_clipped_or_not(need: str) -> None:
    """Of two experts one saw 16 tokens: their mean is its own, and what the other one gets."""
    layers = experts_in(tiny_experts("gpt_oss"))[:2]
    assert layers[0].rivals == layers[1].rivals
    moments = [GRADIENT_STATISTICS[need](4, 4, torch.device("cpu")) for _ in layers]
    moments[0].add(None, torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0)))
    own = moments[0].result()
    lend(layers, {}, {layer.name: {need: moment} for layer, moment in zip(layers, moments, strict=True)})
    for moment in moments:
        torch.testing.assert_close(moment.result(), own)


@pytest.mark.parametrize("alone", [False, True])
def test_an_expert_counts_by_the_share_of_the_tokens_that_it_saw(alone: bool) -> None:
    """Of 24 tokens, each of which went to two experts, 10 and 38 times: against a layer that saw all 24, or alone."""
    model = tiny_experts("gpt_oss")
    experts, every = experts_in(model)[:2], find_matrices(model, Targets(include=["*.0.self_attn.q_proj"]))
    rows = [torch.randn(count, 4, generator=torch.Generator().manual_seed(count)) for count in (10, 38, 24)]
    moments = [Gram(4, torch.device("cpu")) for _ in rows]
    for moment, part in zip(moments, rows, strict=True):
        moment.add(part)
    layers = experts if alone else [*experts, *every]
    lend(layers, {layer.name: {"gram": one} for layer, one in zip(layers, moments, strict=False)}, {})
    mean, tokens = torch.cat(rows[:2]), 48 if alone else 24
    for part, moment in zip(rows[:2], moments, strict=False):
        expected = (part.T @ part + 4 * mean.T @ mean / 48) / (len(part) + 4) * min(1, (len(part) + 1) / tokens)
        torch.testing.assert_close(moment.result(), expected)
    torch.testing.assert_close(moments[2].result(), rows[2].T @ rows[2] / 24)


def test_an_expert_without_tokens_is_named_and_compressed(
    windows: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_experts("gpt_oss")
    for layer in model.model.layers:
        layer.mlp.router.bias[1] = -1e4
    with caplog.at_level(logging.WARNING):
        result = svdexp.compress(model, windows, method="kron", ratio=0.5, storage="factors")
    said = "experts saw no token of the calibration text and take the mean of their layer: "
    assert (
        f"{said}model.layers.*.mlp.experts.gate_up_proj.* (2), model.layers.*.mlp.experts.down_proj.* (2)"
        in caplog.text
    )
    assert not result.compression.left_dense
    assert not any(torch.isnan(x).any() for x in model.parameters())
    unseen = [matrix for matrix in experts_in(tiny_experts("gpt_oss")) if matrix.name.endswith(".1")]
    seldom = [result.ranks[matrix.name] for matrix in unseen]
    others = [rank for name, rank in result.ranks.items() if ".experts." in name and not name.endswith(".1")]
    assert max(rank or 99 for rank in seldom) < sum(rank or 99 for rank in others) / len(others)


def test_pivots_and_blockwise_statistics_serve_experts_as_well(windows: torch.Tensor) -> None:
    model = tiny_experts("qwen3_moe")
    result = svdexp.compress(
        model, windows, method="svd_llm", ratio=0.6, storage="pivot", overrides=["method.traversal=blockwise"]
    )
    assert 0.5 < result.achieved_ratio <= 0.6
    assert bool(torch.isfinite(model(windows).logits).all())
