"""The decomposition against the closed-form optimum ‖L W R‖_F² − Σ_{i≤r} σᵢ², computed by brute force in float64."""

import itertools

import pytest
import torch

from svdexp.factorisation import Decomposition, Metric, decompose
from svdexp.factorisation.moments import definite
from svdexp.runtime.errors import UserError
from svdexp.schema import Numerics, SigmaFuse

# Of the largest singular value: what float64 resolves of one where its square is computed, twice the root of epsilon.
RESOLVED = 2 * 2.0**-26
SHAPES = [(12, 20), (20, 12), (16, 16)]


def moment(n: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """E[x xᵀ] of `tokens` random vectors with correlated, badly scaled features; rank min(n, tokens)."""
    mix = torch.randn(n, n, generator=generator, dtype=torch.float64) * torch.logspace(-3, 2, n)
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64) @ mix
    return x.T @ x / tokens


def root(moment: torch.Tensor) -> torch.Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def loss(W: torch.Tensor, metric: Metric) -> torch.Tensor:
    """‖L W R‖_F for the symmetric roots L of G and R of C."""
    if metric.left is not None:
        W = root(metric.left) @ W
    if metric.right is not None:
        W = W @ root(metric.right)
    return W.norm()


def optimum(W: torch.Tensor, metric: Metric, rank: int) -> torch.Tensor:
    """The least loss of any rank-`rank` approximation, from a full SVD."""
    weighted = W if metric.left is None else root(metric.left) @ W
    weighted = weighted if metric.right is None else weighted @ root(metric.right)
    return torch.linalg.svdvals(weighted)[rank:].norm()


def metrics(m: int, n: int) -> dict[str, Metric]:
    generator = torch.Generator().manual_seed(7)
    C, G = moment(n, 10 * n, generator), moment(m, 10 * m, generator)
    few = moment(n, n // 2, generator)
    dead = C.clone()
    dead[3], dead[:, 3] = 0, 0
    return {
        "identity": Metric(),
        "right": Metric(right=C),
        "left": Metric(left=G),
        "both": Metric(left=G, right=C),
        "fewer tokens than features": Metric(right=few),
        "a dead feature": Metric(right=dead),
        "both, rank-deficient": Metric(left=G, right=few),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", list(metrics(2, 8)))
def test_truncation_reaches_the_closed_form_optimum_at_every_rank(shape: tuple[int, int], kind: str) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = metrics(*shape)[kind]
    part = decompose(W, metric, dtype=torch.float64)
    # damping costs 1e-6
    slack = (RESOLVED if part.damping.max() == 0 else 1e-6) * loss(W, metric).item()
    for rank in range(1, min(shape)):
        factors = part.truncate(rank)
        assert factors.rank == rank
        best = optimum(W, metric, rank)
        found = loss(W - factors.A @ factors.B, metric)
        assert found.item() == pytest.approx(best.item(), rel=1e-6, abs=slack)
        assert part.spectrum[rank:].norm().item() == pytest.approx(best.item(), rel=1e-6, abs=slack)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", list(metrics(2, 8)))
def test_full_rank_is_the_identity(shape: tuple[int, int], kind: str) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    factors = decompose(W, metrics(*shape)[kind], dtype=torch.float64).truncate(min(shape))
    torch.testing.assert_close(factors.A @ factors.B, W, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_falls_monotonically_with_rank(shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for metric in metrics(*shape).values():
        part = decompose(W, metric, dtype=torch.float64)
        losses = [loss(W - f.A @ f.B, metric) for f in (part.truncate(rank) for rank in range(1, min(shape) + 1))]
        scale = float(loss(W, metric))
        assert all(later <= earlier + 1e-9 * scale for earlier, later in itertools.pairwise(losses))
        shares = [part.error(rank) for rank in range(min(shape) + 1)]
        assert shares[0] == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_plain_svd_is_eckart_young() -> None:
    W = torch.randn(9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = decompose(W, Metric(), dtype=torch.float64)
    torch.testing.assert_close(part.spectrum, torch.linalg.svdvals(W))
    U, S, Vh = torch.linalg.svd(W)
    factors = part.truncate(4)
    torch.testing.assert_close(factors.A @ factors.B, U[:, :4] * S[:4] @ Vh[:4])


def test_factors_are_balanced() -> None:
    W = torch.randn(9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = decompose(W, metrics(9, 14)["both"], dtype=torch.float64).truncate(5)
    torch.testing.assert_close(factors.A.norm(dim=0), factors.B.norm(dim=1))


@pytest.mark.parametrize("fuse", SigmaFuse)
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_beyond_that_of_the_matrix_are_numbers(shape: tuple[int, int], fuse: SigmaFuse) -> None:
    """What stands there is noise, and was infinite where it was divided by a singular value of zero."""
    m, n = shape
    for W in (torch.zeros(m, n), torch.randn(1, n, generator=torch.Generator().manual_seed(0)).repeat(m, 1)):
        for metric in (Metric(), metrics(m, n)["right"]):
            factors = decompose(W, metric).truncate(min(m, n), fuse)
            A, B = factors.A.half().float(), factors.B.half().float()
            torch.testing.assert_close(A @ B, W, rtol=5e-3, atol=5e-3)


def test_a_lower_rank_is_a_slice_to_the_last_bit() -> None:
    """Also at rank 1, where a norm over columns is summed in another order than over several."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(576, 192, generator=generator), torch.randn(192, 576, generator=generator)
    part = Decomposition(left, right, torch.linspace(2, 1, 192, dtype=torch.float64), torch.zeros(2))
    for fuse in SigmaFuse:
        whole = part.truncate(192, fuse)
        for rank in (1, 2, 3, 64, 191):
            factors = part.truncate(rank, fuse)
            assert torch.equal(factors.A, whole.A[:, :rank])
            assert torch.equal(factors.B, whole.B[:rank])


def test_what_a_deficient_moment_does_not_see_counts_a_little() -> None:
    """On both sides: without that, G has no Cholesky factor, and C none of the components that full rank needs."""
    W = torch.randn(9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, g = (torch.randn(4, size, generator=torch.Generator().manual_seed(1)).double() for size in (14, 9))
    metric = Metric(left=g.T @ g / 4, right=x.T @ x / 4)
    for numerics in Numerics:
        part = decompose(W, metric, torch.float64, numerics)
        assert (part.damping > 0).all()
        assert (part.damping < 1e-9).all()
        torch.testing.assert_close(part.left @ part.right, W, rtol=1e-2, atol=1e-2)
        found = loss(W - part.left[:, :4] @ part.right[:4], metric)
        assert found < 1e-4 * loss(W, metric), "four components are all that four tokens see"


def test_damping_is_zero_for_a_definite_moment_and_reported_for_a_deficient_one() -> None:
    W = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    all_metrics = metrics(12, 6)
    assert decompose(W, all_metrics["both"]).damping.tolist() == [0, 0]
    left, right = decompose(W, all_metrics["fewer tokens than features"]).damping.tolist()
    few = all_metrics["fewer tokens than features"].right
    assert few is not None
    assert left == 0
    assert 0 < right <= 1e-9 * float(few.diagonal().mean())


@pytest.mark.parametrize("diagonal", [True, False])
def test_damping_grows_tenfold_until_there_is_a_root(diagonal: bool) -> None:
    """2e-9 of the mean is missing, so of 1e-12, 1e-11, … it takes 1e-8."""
    values = torch.tensor([1.0, 2.0, 3.0, -3e-9], dtype=torch.float64)
    moment = values if diagonal else values.diag()
    damped, _, damping = definite(moment)
    assert damping == pytest.approx(1e-8 * float(values.mean()), rel=1e-9)
    torch.testing.assert_close(damped, values + damping if diagonal else (values + damping).diag(), rtol=0, atol=0)


def test_no_tokens_means_plain_svd() -> None:
    W = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = decompose(W, Metric(right=torch.zeros(12, 12)), torch.float64)
    torch.testing.assert_close(part.spectrum, torch.linalg.svdvals(W))
    assert part.damping.tolist() == [0, 1]


def test_an_overflowed_moment_is_refused() -> None:
    with pytest.raises(UserError, match="precision=float32"):
        decompose(torch.eye(4), Metric(right=torch.full((4, 4), torch.inf)))
