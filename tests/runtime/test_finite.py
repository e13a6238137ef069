"""all_finite against a look at every entry."""

import math

import pytest
import torch

from svdexp.runtime.finite import all_finite

FORMATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_entry_anywhere_shows(dtype: torch.dtype, value: float) -> None:
    for place in range(37):  # in whichever lane of a vector unit, and in the rest
        x = torch.zeros(37, dtype=dtype)
        x[place] = value
        assert not all_finite(x)
        assert not all_finite(x[:, None].expand(-1, 3).T)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert all_finite(torch.tensor([[largest, -largest], [largest, 0]], dtype=dtype))


def test_what_is_empty_or_has_gradients() -> None:
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.ones(3, requires_grad=True))
