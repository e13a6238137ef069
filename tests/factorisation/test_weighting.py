"""Each weighting against a brute-force optimum of the objective its paper states."""

import pytest
import torch

from svdexp.factorisation import Diagonal, FisherRows, KFac, TwoSided, decompose
from svdexp.factorisation.weighting import ChannelScale
from svdexp.runtime.errors import UserError
from tests.factorisation.test_decompose import moment

M, N, RANK = 10, 14, 4


@pytest.fixture
def W() -> torch.Tensor:
    return torch.randn(M, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def truncated(W: torch.Tensor) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :RANK] * S[:RANK] @ Vh[:RANK]


def product(W: torch.Tensor, metric: object) -> torch.Tensor:
    factors = decompose(W, metric, torch.float64).truncate(RANK)  # type: ignore[arg-type]
    return factors.A @ factors.B


def test_fwsvd_scales_rows_by_the_root_of_their_fisher_information(W: torch.Tensor) -> None:
    fisher = torch.rand(M, N, dtype=torch.float64) + 0.01
    D = fisher.sum(1).sqrt().diag()
    expected = torch.linalg.inv(D) @ truncated(D @ W)
    torch.testing.assert_close(product(W, FisherRows()({"fisher": fisher})), expected)


@pytest.mark.parametrize("scale", ChannelScale)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_asvd_scales_columns_by_s_to_the_alpha(W: torch.Tensor, scale: ChannelScale, alpha: float) -> None:
    statistics = {
        "abs_mean": torch.rand(N, dtype=torch.float64) + 0.01,
        "abs_max": torch.rand(N, dtype=torch.float64) + 1,
        "fisher": torch.rand(M, N, dtype=torch.float64) + 0.01,
    }
    s = {
        "abs_mean": statistics["abs_mean"],
        "abs_max": statistics["abs_max"],
        "fisher": statistics["fisher"].mean(0),
        "fisher_abs_mean": statistics["fisher"].mean(0) * statistics["abs_mean"],
    }[scale.value]
    weighting = Diagonal(alpha, scale)
    assert set(weighting.needs) <= statistics.keys()
    S = s.pow(alpha).diag()
    expected = truncated(W @ S) @ torch.linalg.inv(S)
    torch.testing.assert_close(product(W, weighting(statistics)), expected)


@pytest.mark.parametrize("diagonal", [False, True])
def test_kron_is_the_optimum_under_both_roots(W: torch.Tensor, diagonal: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    C, G = moment(N, 200, generator), moment(M, 200, generator)
    left = G.diagonal().diag() if diagonal else G
    L, R = torch.linalg.cholesky(left).T, torch.linalg.cholesky(C)
    expected = torch.linalg.inv(L) @ truncated(L @ W @ R) @ torch.linalg.inv(R)
    found = product(W, TwoSided(diagonal)({"gram": C, "grad_gram": G}))
    difference = L @ (found - expected) @ R
    assert difference.norm() < 1e-6 * (L @ W @ R).norm()


def test_a_dead_channel_keeps_a_diagonal_weighting_finite(W: torch.Tensor) -> None:
    statistic = torch.rand(N, dtype=torch.float64)
    statistic[2] = 0
    for V in (W, torch.randn(N + 1, N, dtype=torch.float64)):
        part = decompose(V, Diagonal()({"abs_mean": statistic}), torch.float64)
        assert (part.damping[1] > 0) == (len(V) > N), "the channels of a wide matrix are nowhere inverted"
        assert torch.isfinite(part.left).all()
        assert torch.isfinite(part.right).all()


def test_alpha_is_checked() -> None:
    with pytest.raises(UserError, match=r"method\.weighting\.alpha"):
        Diagonal(alpha=-1)


def test_kfac_shrinks_both_sides_towards_the_identity(W: torch.Tensor) -> None:
    """Against the SVD between Cholesky factors of the shrunk moments, as the paper's code does it."""
    generator = torch.Generator().manual_seed(4)
    C, G = moment(N, 200, generator), moment(M, 200, generator)
    left = torch.linalg.cholesky(0.7 * G + 0.3 * G.trace() / M * torch.eye(M, dtype=torch.float64))
    right = torch.linalg.cholesky(0.9 * C + 0.1 * C.trace() / N * torch.eye(N, dtype=torch.float64))
    expected = torch.linalg.solve(left.T, truncated(left.T @ W @ right)) @ torch.linalg.inv(right)
    torch.testing.assert_close(product(W, KFac()({"clipped_grad_gram": G, "gram": C})), expected)
    plain = TwoSided()({"grad_gram": G, "gram": C})
    torch.testing.assert_close(product(W, KFac(0, 0)({"clipped_grad_gram": G, "gram": C})), product(W, plain))


@pytest.mark.parametrize("side", ["left", "right"])
def test_kfac_shrinks_by_a_share(side: str) -> None:
    with pytest.raises(UserError, match=f"method.weighting.shrink_{side} must be between 0 and 1, not 1.5"):
        KFac(**{f"shrink_{side}": 1.5})
