"""What every storage can do."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix

# Sizes are those of a checkpoint in a 16-bit format, whatever format a run computes in: `ratio` then means the same
# everywhere, and formats of their own width, such as int8, compare with the dense matrix that people ship.
NUMBER_BITS = 16


class Storage(Protocol):
    """Prices a rank and builds the layer that holds it.

    The layer's class has a `kind`, the key of svdexp.storage.LAYERS under which checkpoints record it, and where
    a damaged file could hold what its shapes do not show, a method `validate`.
    """

    def bits(self, rank: int, m: int, n: int) -> int:
        """Stored bits of a rank-`rank` (m, n) matrix."""

    def layer(self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> nn.Module:
        """The layer that replaces the dense one; `like` is the dense weight (dtype, device)."""


@runtime_checkable
class WholeStorage(Storage, Protocol):
    """A storage with a form of its own for matrices that are not factorised; others leave them dense."""

    def whole_bits(self, m: int, n: int) -> int:
        """Stored bits of such a matrix."""

    def whole(self, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        """The layer that holds all of W (m, n) and `bias`, with its dtype and device."""


@runtime_checkable
class FinishingStorage(Storage, Protocol):
    """A storage that looks at the inputs of its layers: until all else is done, these are plain factors or dense."""

    def finish(self, model: PreTrainedModel, layers: list[Matrix], windows: torch.Tensor) -> None:
        """Store all `layers` of `model`, given calibration `windows` (N, L)."""


def whole_bits(storage: Storage, m: int, n: int) -> int:
    """Stored bits of an (m, n) matrix that is not factorised."""
    return storage.whole_bits(m, n) if isinstance(storage, WholeStorage) else m * n * NUMBER_BITS


def stored_bits(module: nn.Module) -> int:
    """Bits of a layer's tensors, counted; biases are left out, because no method changes them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return sum(t.numel() * width(t) for name, t in tensors if name.rpartition(".")[2] != "bias")


def width(tensor: torch.Tensor) -> int:
    """Bits of one entry: NUMBER_BITS of a floating-point number, what it takes of an integer."""
    return NUMBER_BITS if tensor.is_floating_point() else 8 * tensor.element_size()
