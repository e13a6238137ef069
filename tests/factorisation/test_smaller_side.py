"""Decompositions from two moments on the smaller side of W, against brute force in float64 and the other routes."""

from dataclasses import replace

import pytest
import torch

from svdexp.factorisation import (
    Diagonal,
    FisherRows,
    Identity,
    InputMoment,
    Metric,
    TwoSided,
    Weighting,
    decompose,
    needs_of,
)
from svdexp.factorisation.smaller_side import MARGIN, SHARES
from svdexp.runtime.errors import UserError
from svdexp.schema import Numerics
from tests.factorisation.test_decompose import RESOLVED, SHAPES, loss, metrics, moment, optimum

KINDS = ["right", "left", "both", "fewer tokens than features", "both, rank-deficient"]


def weight(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def seen(W: torch.Tensor, metric: Metric) -> Metric:
    """The same metric with the moment on the larger side as W sees it; of a square W, either."""
    m, n = W.shape
    if m <= n and metric.right is not None:
        metric = replace(metric, right=None, outputs=W @ metric.right @ W.mT)
    if m > n and metric.left is not None:
        metric = replace(metric, left=None, input_gradients=W.mT @ metric.left @ W)
    return metric


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_w_sees_of_the_larger_side_reaches_the_optimum_at_every_rank(shape: tuple[int, int], kind: str) -> None:
    W, whole = weight(shape), metrics(*shape)[kind]
    part = decompose(W, seen(W, whole), torch.float64)
    torch.testing.assert_close(part.left @ part.right, W, rtol=1e-7, atol=1e-7)
    slack = (RESOLVED if part.damping.max() == 0 else 1e-6) * loss(W, whole).item()
    for rank in range(1, min(shape)):
        best = optimum(W, whole, rank).item()
        found = loss(W - part.left[:, :rank] @ part.right[:rank], whole).item()
        assert found == pytest.approx(best, rel=1e-6, abs=slack)
        assert part.spectrum[rank:].norm().item() == pytest.approx(best, rel=1e-6, abs=slack)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["right", "left", "both"])
def test_it_is_what_the_other_routes_find(shape: tuple[int, int], kind: str) -> None:
    W, whole = weight(shape), metrics(*shape)[kind]
    found = decompose(W, seen(W, whole), torch.float64)
    for numerics in Numerics:
        other = decompose(W, whole, torch.float64, numerics)
        scale = other.spectrum[0]
        torch.testing.assert_close(found.spectrum, other.spectrum, rtol=1e-6, atol=RESOLVED * float(scale))
        for rank in (1, 5):
            found_at, other_at = (part.left[:, :rank] @ part.right[:rank] for part in (found, other))
            assert loss(found_at - other_at, whole) < 1e-6 * loss(W, whole), numerics


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_above_that_of_the_moment_go_to_what_w_has_there(shape: tuple[int, int]) -> None:
    """An expert saw three tokens: beyond three components all weights count the same."""
    W, (m, n) = weight(shape), shape
    generator = torch.Generator().manual_seed(5)
    few = [torch.randn(3, size, generator=generator).double() for size in (m, n)]
    G, C = (x.T @ x / 3 for x in few)
    wide = m <= n
    metric = Metric(outputs=W @ C @ W.mT) if wide else Metric(input_gradients=W.mT @ G @ W)
    part = decompose(W, metric, torch.float64)
    assert 0 < part.damping[int(wide)] < 1e-9
    V, tokens = (W, few[1]) if wide else (W.mT, few[0])
    left_over = torch.linalg.svdvals(V - projector(V @ tokens.T) @ V)
    for rank in (3, 5, 8):
        rest = W - part.left[:, :rank] @ part.right[:rank]
        assert rest.norm().item() == pytest.approx(left_over[rank - 3 :].norm().item(), rel=1e-3)


def projector(X: torch.Tensor) -> torch.Tensor:
    """On the span of the columns."""
    Q, _ = torch.linalg.qr(X)
    return Q @ Q.mT


@pytest.mark.parametrize("shape", SHAPES)
def test_no_tokens_mean_plain_svd(shape: tuple[int, int]) -> None:
    W, k = weight(shape), min(shape)
    nothing = torch.zeros(k, k)
    metric = Metric(nothing, outputs=nothing) if shape[0] <= shape[1] else Metric(None, nothing, None, nothing)
    part = decompose(W, metric, torch.float64)
    torch.testing.assert_close(part.spectrum, torch.linalg.svdvals(W))
    assert part.damping.tolist() == [1, 1]


def test_rows_that_depend_on_each_other_need_no_damping() -> None:
    """Nor can any help: what W sees of a definite C is rank-deficient then."""
    W = weight((6, 9))
    W[4] = W[2]
    C = moment(9, 100, torch.Generator().manual_seed(2))
    part = decompose(W, Metric(outputs=W @ C @ W.mT), torch.float64)
    assert part.damping.tolist() == [0, 0]
    assert loss(W - part.left[:, :5] @ part.right[:5], Metric(right=C)) < 1e-7 * loss(W, Metric(right=C))


@pytest.mark.parametrize("lost", [3e-12, 3e-10, 3e-8, 3e-5])
def test_damping_is_the_least_that_is_enough(lost: float) -> None:
    """Or none where the largest is not: float32 sums have lost too much."""
    W = weight((6, 9))
    x = torch.randn(3, 9, generator=torch.Generator().manual_seed(5)).double()
    S, plain = W @ x.T @ x @ W.mT, W @ W.mT
    S -= lost * S.trace() / 6 * torch.eye(6)
    enough = [
        damping
        for damping in (share * float(S.trace() / plain.trace()) for share in SHARES)
        if torch.linalg.eigvalsh(S + damping * plain)[0] > MARGIN * S.trace() / 6
    ]
    expected = enough[0] if enough else 0.0
    assert decompose(W, Metric(outputs=S), torch.float64).damping.tolist() == pytest.approx([0, expected])


@pytest.mark.parametrize("kind", ["outputs", "input_gradients"])
def test_what_overflowed_is_refused(kind: str) -> None:
    W = weight((4, 6) if kind == "outputs" else (6, 4))
    with pytest.raises(UserError, match="precision=float32"):
        decompose(W, Metric(**{kind: torch.full((4, 4), torch.inf)}))


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_in_the_format_that_is_asked_for(shape: tuple[int, int]) -> None:
    """And as exact as it allows, though W's own format is narrower."""
    W = weight(shape).bfloat16()
    C = moment(shape[1], 100, torch.Generator().manual_seed(2))
    part = decompose(W, Metric(right=C))
    assert (part.left.dtype, part.right.dtype, part.spectrum.dtype) == (torch.float32, torch.float32, torch.float64)
    assert part.left.is_contiguous()
    assert part.right.is_contiguous()
    torch.testing.assert_close(part.left @ part.right, W.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weighting", "wide", "square", "tall"),
    [
        (Identity(), (), (), ()),
        (FisherRows(), ("fisher",), ("fisher",), ("fisher",)),
        (Diagonal(), ("abs_mean",), ("abs_mean",), ("abs_mean",)),
        (InputMoment(), ("output_gram",), ("gram",), ("gram",)),
        (TwoSided(), ("output_gram", "grad_gram"), ("gram", "grad_gram"), ("gram", "input_grad_gram")),
        (TwoSided(True), ("output_gram", "grad_gram"), ("gram", "grad_gram"), ("gram", "grad_gram")),
    ],
)
def test_statistics_are_those_of_the_smaller_side(
    weighting: Weighting, wide: tuple[str, ...], square: tuple[str, ...], tall: tuple[str, ...]
) -> None:
    assert [needs_of(weighting, *shape) for shape in ((2, 3), (3, 3), (3, 2))] == [wide, square, tall]
    assert {needs_of(weighting, *shape, smaller_side=False) for shape in SHAPES} == {weighting.needs}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighting", [InputMoment(), TwoSided(), TwoSided(diagonal_left=True)])
def test_weightings_make_one_metric_of_either(weighting: Weighting, shape: tuple[int, int]) -> None:
    W, (m, n) = weight(shape), shape
    generator = torch.Generator().manual_seed(4)
    C, G = moment(n, 200, generator), moment(m, 200, generator)
    statistics = {
        "gram": C,
        "grad_gram": G,
        "output_gram": W @ C @ W.mT,
        "input_grad_gram": W.mT @ G @ W,
    }
    found, whole = (
        decompose(W, weighting({need: statistics[need] for need in needs_of(weighting, m, n, side)}), torch.float64)
        for side in (True, False)
    )
    torch.testing.assert_close(found.spectrum, whole.spectrum, rtol=1e-6, atol=RESOLVED * float(whole.spectrum[0]))


@pytest.mark.parametrize(("m", "n"), [(96, 96), (64, 96), (96, 64)])
def test_what_is_small_beside_a_few_huge_directions_is_found_too(m: int, n: int) -> None:
    """Factors are float32, but no product on the way to them is: the least losses would be many times the optimum."""
    generator = torch.Generator().manual_seed(0)

    def moment(width: int) -> torch.Tensor:
        scales = torch.logspace(0, -2, width, dtype=torch.float64)
        scales[:3] *= 100
        x = torch.randn(4 * width, width, generator=generator, dtype=torch.float64) * scales
        return x.mT @ x / len(x)

    W, G, C = torch.randn(m, n, generator=generator).double(), moment(m), moment(n)
    metric = Metric(
        left=G if m <= n else None,
        right=C if m >= n else None,
        outputs=W @ C @ W.mT if m < n else None,
        input_gradients=W.mT @ G @ W if m > n else None,
    )
    L, R = torch.linalg.cholesky(G).mT, torch.linalg.cholesky(C)
    optimum = torch.linalg.svdvals(L @ W @ R).square()
    rank = min(m, n) // 2
    factors = decompose(W, metric).truncate(rank)
    lost = (L @ (W - factors.A @ factors.B) @ R).square().sum()
    assert float(lost / optimum[rank:].sum()) == pytest.approx(1, abs=5e-5)
