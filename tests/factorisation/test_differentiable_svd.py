"""The stabilised SVD: values against torch's, gradients against finite differences and torch's own backward pass."""

from collections.abc import Callable

import pytest
import torch

from svdexp.factorisation.activation import gate, soft_truncate
from svdexp.factorisation.differentiable_svd import TERMS, TruncatedSVD, inverse_gaps, singular_triplets

SHAPES = [(7, 5), (5, 7), (6, 6), (2, 8, 5), (3, 4, 9)]


def random_matrix(*shape: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    *batch, t, m = shape
    return random_matrix(*batch, t, rank, seed=seed) @ random_matrix(*batch, rank, m, seed=seed + 1)


def with_singular_values(values: list[float], t: int, m: int) -> torch.Tensor:
    k = len(values)
    U, V = torch.linalg.qr(random_matrix(t, k))[0], torch.linalg.qr(random_matrix(m, k, seed=1))[0]
    return U * torch.tensor(values, dtype=torch.float64) @ V.mT


def use_of(U: torch.Tensor, S: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """Depends on all three, and not on the signs of singular vectors."""
    weights = torch.linspace(1, 2, S.shape[-1], dtype=S.dtype)
    probe = torch.linspace(-1, 1, U.shape[-2] * V.shape[-2], dtype=S.dtype).reshape(U.shape[-2], V.shape[-2])
    return (((U * (S.sqrt() * weights)[..., None, :]) @ V.mT) * probe).sum() + (S**3).sum()


def gradient(svd: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], A: torch.Tensor) -> torch.Tensor:
    A = A.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(use_of(*svd(A)), A)
    return found


def ours(A: torch.Tensor, q: int | None = None) -> tuple[torch.Tensor, ...]:
    found: tuple[torch.Tensor, ...] = TruncatedSVD.apply(A, q or min(A.shape[-2:]), False)
    return found


def torchs(A: torch.Tensor) -> tuple[torch.Tensor, ...]:
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    return U, S, Vh.mT


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_are_those_of_the_full_svd(shape: tuple[int, ...]) -> None:
    A = random_matrix(*shape)
    U, S, V = singular_triplets(A, 3)
    u, s, v = torchs(A)
    torch.testing.assert_close(S, s[..., :3])
    best = (u[..., :3] * s[..., None, :3]) @ v[..., :3].mT
    torch.testing.assert_close((U * S[..., None, :]) @ V.mT, best)


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_beyond_the_rank_are_zero_but_for_the_nearer_side(shape: tuple[int, ...]) -> None:
    """Not rounding errors, whose inverses would be large: the vectors on the larger side are zero as well."""
    U, S, V = singular_triplets(random_matrix(*shape, rank=2), 4)
    near, far = (U, V) if shape[-2] <= shape[-1] else (V, U)
    assert bool((S[..., :2] > 0).all())
    assert not bool(S[..., 2:].any())
    assert not bool(far[..., 2:].any())
    torch.testing.assert_close(near.mT @ near, torch.eye(4, dtype=near.dtype).expand(*shape[:-2], 4, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    A = random_matrix(*shape).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda A: use_of(*ours(A)), (A,), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_torchs_where_that_is_stable(shape: tuple[int, ...]) -> None:
    A = random_matrix(*shape)
    torch.testing.assert_close(gradient(ours, A), gradient(torchs, A))


def test_truncated_gradient_is_exact_along_matrices_of_that_rank() -> None:
    """For A of rank 3, the derivative of the 3 triplets along changes that keep the rank, by finite differences."""
    left, right = random_matrix(8, 3), random_matrix(3, 6, seed=5)
    left.requires_grad_(True), right.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: use_of(*ours(a @ b, 3)), (left, right), atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [[3, 2, 2, 1], [2, 2, 2, 2], [3, 2, 0, 0], [0, 0, 0, 0], [3, 2 + 1e-6, 2, 1e-8], [1e4, 1, 1, 1e-3]],
)
def test_gradient_is_finite_where_torchs_is_not(values: list[float]) -> None:
    """Equal, nearly equal and zero singular values in float32."""
    for t, m in ((9, 6), (6, 9)):
        A = with_singular_values(values, t, m).float()
        Y = soft_truncate(A.requires_grad_(True), torch.tensor(2.5), 10.0, randomised=False)
        (found,) = torch.autograd.grad((Y * torch.randn(t, m)).sum(), A)
        assert bool(found.isfinite().all())
        assert float(found.abs().max()) < 1e6


def test_torchs_gradient_is_not_finite_there() -> None:
    """What the stabilised one is for."""
    A = torch.diag(torch.tensor([2.0, 2.0, 1.0])).requires_grad_(True)
    U, S, V = torchs(A)
    (found,) = torch.autograd.grad(((U * S.sqrt()) @ V.mT * torch.randn(3, 3)).sum(), A)
    assert not bool(found.isfinite().all())


def test_close_pairs_take_the_series_and_others_the_inverse() -> None:
    """TERMS / σ² between equal values; 1 / (σⱼ² − σᵢ²) between distant ones; nothing between zeros."""
    F = inverse_gaps(torch.tensor([2.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(F, -F.mT)
    torch.testing.assert_close(F[1, 0].item(), TERMS / 4)
    torch.testing.assert_close(F[2, 0].item(), 1 / 3)
    torch.testing.assert_close(F[3, 2].item(), 1.0)
    assert F[4, 3] == 0


def test_the_rank_has_the_gradient_of_finite_differences() -> None:
    Y, probe = random_matrix(12, 9), random_matrix(12, 9, seed=3)
    rank = torch.tensor(4.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: (soft_truncate(Y, r, 1.0, randomised=False) * probe).sum(), (rank,))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 10.0])
def test_components_that_are_not_computed_would_have_been_closed(sharpness: float) -> None:
    """The truncated computation equals gating all components."""
    Y, rank = random_matrix(60, 50), torch.tensor(10.4, dtype=torch.float64)
    U, S, V = torchs(Y)
    expected = (U * S * gate(50, rank, sharpness)) @ V.mT
    torch.testing.assert_close(soft_truncate(Y, rank, sharpness, randomised=False), expected, rtol=1e-6, atol=1e-6)


def test_a_sharp_gate_at_a_half_is_hard_truncation() -> None:
    Y = random_matrix(12, 9)
    U, S, V = torchs(Y)
    found = soft_truncate(Y, torch.tensor(4.5, dtype=torch.float64), 10.0, randomised=False)
    torch.testing.assert_close(found, (U[:, :4] * S[:4]) @ V[:, :4].mT, rtol=1e-3, atol=1e-3)


def test_the_papers_range_finder_is_close_where_the_spectrum_decays() -> None:
    torch.manual_seed(0)
    Y = with_singular_values([2.0**-i for i in range(12)], 40, 30)
    exact, approximate = (soft_truncate(Y, torch.tensor(5.5, dtype=torch.float64), 10.0, r) for r in (False, True))
    torch.testing.assert_close(approximate, exact, rtol=1e-3, atol=1e-3)
