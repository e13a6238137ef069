"""The papers' routes to the whitened optimum agree with each other and with brute force."""

import logging

import pytest
import torch

from svdexp.factorisation import Metric, decompose
from svdexp.schema import Numerics, SigmaFuse
from tests.factorisation.test_decompose import SHAPES, loss, metrics, moment, optimum


@pytest.mark.parametrize("numerics", Numerics)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["identity", "right", "both", "left"])
def test_every_route_reaches_the_same_optimum(numerics: Numerics, shape: tuple[int, int], kind: str) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = metrics(*shape)[kind]
    part = decompose(W, metric, torch.float64, numerics)
    scale = loss(W, metric).item()
    for rank in (1, 4, min(shape)):
        factors = part.truncate(rank)
        found = loss(W - factors.A @ factors.B, metric).item()
        assert found == pytest.approx(optimum(W, metric, rank).item(), rel=1e-6, abs=1e-7 * scale)
    assert part.spectrum.shape == (min(shape),)
    assert part.left.shape == (shape[0], min(shape))
    assert part.right.shape == (min(shape), shape[1])


@pytest.mark.parametrize("shape", [(12, 20), (16, 16)])
@pytest.mark.parametrize("kind", list(metrics(2, 8)))
def test_the_smaller_side_of_a_wide_matrix_is_its_outputs(shape: tuple[int, int], kind: str) -> None:
    """To the last bit: the test on the real model takes one of both routes there."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one, other = (decompose(W, metrics(*shape)[kind], numerics=n) for n in (Numerics.eigh, Numerics.output_eigh))
    assert all(torch.equal(value, vars(other)[key]) for key, value in vars(one).items())


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
def test_tall_matrices_with_nearly_dependent_columns(spread: float) -> None:
    """Where Wᵀ W has no usable Cholesky factor, and where it just has."""
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(24, 10, generator=generator, dtype=torch.float64)
    W[:, 3] = W[:, 7] + spread * torch.randn(24, generator=generator, dtype=torch.float64)
    metric = metrics(24, 10)["both"]
    part = decompose(W, metric, torch.float64)
    for rank in (2, 9, 10):
        factors = part.truncate(rank)
        found = loss(W - factors.A @ factors.B, metric).item()
        assert found == pytest.approx(optimum(W, metric, rank).item(), rel=1e-6, abs=2e-9 * loss(W, metric).item())


def test_where_cholesky_fails_the_run_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    W = torch.randn(12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = metrics(12, 20)["fewer tokens than features"]
    with caplog.at_level(logging.WARNING):
        part = decompose(W, metric, torch.float64, Numerics.cholesky)
    assert "Cholesky failed" in caplog.text
    expected = decompose(W, metric, torch.float64)
    torch.testing.assert_close(part.spectrum, expected.spectrum)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
@pytest.mark.parametrize("fuse", SigmaFuse)
def test_where_the_singular_values_go_does_not_change_the_product(fuse: SigmaFuse, shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = decompose(W, Metric(right=moment(shape[1], 100, torch.Generator().manual_seed(1))), torch.float64)
    factors, balanced = part.truncate(5, fuse), part.truncate(5)
    torch.testing.assert_close(factors.A @ factors.B, balanced.A @ balanced.B)
    if fuse is SigmaFuse.V:
        torch.testing.assert_close(factors.A.norm(dim=0), torch.ones(5, dtype=torch.float64))
    if fuse is SigmaFuse.U:
        torch.testing.assert_close(factors.A.norm(dim=0), part.spectrum[:5])
    if fuse is SigmaFuse.UV:
        torch.testing.assert_close(factors.A.norm(dim=0), part.spectrum[:5].sqrt())
