"""Eigendecompositions are those of the matrix, whatever stands above its diagonal, and leave it as it is."""

import pytest
import torch

from svdexp.factorisation.eigen import eigh


def test_it_is_that_of_the_lower_triangle() -> None:
    X = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = X @ X.mT
    given = S.tril() + 9 * torch.ones(7, 7, dtype=torch.float64).triu(1)
    before = given.clone()
    values, U = eigh(given)
    assert torch.equal(given, before)
    assert values.tolist() == sorted(values.tolist())
    torch.testing.assert_close(U * values @ U.mT, S)
    torch.testing.assert_close(U.mT @ U, torch.eye(7, dtype=torch.float64))


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="infs or NaNs"):
        eigh(torch.full((2, 2), torch.nan, dtype=torch.float64))
