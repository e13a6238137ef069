"""Products in block rows are the plain ones, and leave out what they say."""

import pytest
import torch

from svdexp.factorisation.triangles import (
    NARROWEST,
    PARTS,
    lower_congruence,
    lower_times,
    parts,
    symmetric_product,
    upper_times,
)

SIZES = [1, 7, NARROWEST, NARROWEST + 1, 2 * NARROWEST + 3, PARTS * NARROWEST + 5]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("k", SIZES)
def test_parts_are_all_rows_in_order(k: int) -> None:
    found = list(parts(k))
    assert [row for part in found for row in range(part.start, part.stop)] == list(range(k))
    assert len(found) == min(PARTS, -(-k // NARROWEST))


@pytest.mark.parametrize("k", SIZES[:-1])
def test_they_are_the_plain_products(k: int) -> None:
    R, X, Y = random(k, k).tril(), random(k, 5), random(k, 9)
    S = random(k, k + 3) @ random(k, k + 3).mT
    torch.testing.assert_close(lower_times(R, X), R @ X)
    torch.testing.assert_close(upper_times(R.mT, X), R.mT @ X)
    torch.testing.assert_close(lower_congruence(R, S).tril(), (R.mT @ S @ R).tril())
    moment = random(9, 9) @ random(9, 9).mT
    torch.testing.assert_close(symmetric_product(Y @ moment, Y), Y @ moment @ Y.mT)


def test_they_are_to_the_last_bit_where_there_is_one_part() -> None:
    R, X = random(20, 20).tril(), random(20, 5)
    S = X @ X.mT
    assert torch.equal(lower_times(R, X), R @ X)
    assert torch.equal(upper_times(R.mT, X), R.mT @ X)
    assert torch.equal(lower_congruence(R, S), R.mT @ (R.mT @ S).mT)
    assert torch.equal(symmetric_product(X, X), X @ X.mT)


def test_what_is_zero_or_a_mirror_image_is_left_out() -> None:
    """nan would show wherever it was multiplied."""
    k = 2 * NARROWEST
    R, X = random(k, k).tril(), random(k, 5)
    corner = slice(None, NARROWEST), slice(NARROWEST, None)
    spoilt = R.clone()
    spoilt[corner] = torch.nan
    assert lower_times(spoilt, X).isfinite().all()
    assert upper_times(spoilt.mT, X).isfinite().all()
    assert lower_congruence(spoilt, X @ X.mT).tril().isfinite().all()
    found = symmetric_product(X, X)
    assert torch.equal(found[corner], found.mT[corner])
