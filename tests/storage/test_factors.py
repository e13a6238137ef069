"""Plain factors: price and layer."""

import torch
from torch import nn

from svdexp.models.factors import Factors
from svdexp.storage import FactorStorage, stored_bits


def test_bits_are_those_of_the_layer_it_builds() -> None:
    """Of a 16-bit checkpoint, whatever the format that the run computes in."""
    factors = Factors(torch.randn(7, 3), torch.randn(3, 5))
    for dtype in (torch.float32, torch.bfloat16):
        layer = FactorStorage().layer(factors, torch.randn(7), torch.empty(7, 5, dtype=dtype))
        assert stored_bits(layer) == FactorStorage().bits(3, 7, 5) == 3 * 12 * 16


def test_layer_computes_a_b_x_plus_bias() -> None:
    A, B, bias, x = torch.randn(7, 3), torch.randn(3, 5), torch.randn(7), torch.randn(2, 4, 5)
    layer = FactorStorage().layer(Factors(A, B), bias, torch.empty(7, 5))
    torch.testing.assert_close(layer(x), x @ (A @ B).T + bias)
    assert all(type(child) is nn.Linear for child in layer.children())


def test_children_without_weights_are_no_obstacle() -> None:
    """Libraries that put layers of their own in the children's places ask for every attribute on the way."""
    layer = FactorStorage().layer(Factors(torch.randn(7, 3), torch.randn(3, 5)), None, torch.empty(7, 5))
    layer.rank_in = nn.Identity()
    assert layer.weight is None
