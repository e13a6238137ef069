"""What every storage can do."""

from typing import Protocol

import torch
from torch import nn

from svdexp.models.low_rank import Factors


class Storage(Protocol):
    """Prices a rank and builds the layer that holds it.

    The layer's class has a `kind`, the key of svdexp.storage.LAYERS under which checkpoints record it, and where
    a damaged file could hold what its shapes do not show, a method `validate`.
    """

    def bits(self, rank: int, m: int, n: int, number_bits: int) -> int:
        """Stored bits of a rank-`rank` (m, n) matrix in a model of `number_bits` per number."""

    def layer(self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> nn.Module:
        """The layer that replaces the dense one; `like` is the dense weight (dtype, device)."""


def stored_bits(module: nn.Module) -> int:
    """Bits of a layer's tensors, counted; biases are left out, because no method changes them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return sum(8 * t.numel() * t.element_size() for name, t in tensors if name.rpartition(".")[2] != "bias")
