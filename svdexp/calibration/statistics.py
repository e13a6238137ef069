"""Accumulators: each turns a stream of activations into one statistic.

Sums are float32 on the activations' device; results are means, so they do not depend on how the tokens were
split into batches beyond the order of float32 additions.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

# Width of the block rows in which Gram adds up: wide enough for fast products, narrow enough to skip much.
BLOCK = 512

# What one layer's calibration yields: statistic name → tensor. Layers fed by one tensor share the tensors.
Statistics = Mapping[str, torch.Tensor]


class Accumulator(Protocol):
    """One statistic of one layer's input."""

    def __init__(self, width: int, device: torch.device) -> None: ...

    def add(self, x: torch.Tensor) -> None:
        """Account for the activations `x` of shape (tokens, width)."""

    def result(self) -> torch.Tensor:
        """The statistic over everything added."""


class Gram:
    """C = E[x xᵀ], the input second moment, (n, n)."""

    def __init__(self, width: int, device: torch.device):
        self.total = torch.zeros(width, width, device=device)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Add Σ x xᵀ over the rows of `x`; only block rows from the diagonal rightwards, as C is symmetric."""
        x = x.float()
        for start in range(0, x.shape[1], BLOCK):
            self.total[start : start + BLOCK, start:].addmm_(x[:, start : start + BLOCK].T, x[:, start:])
        self.tokens += len(x)

    def result(self) -> torch.Tensor:
        """The mean, or zeros where no token arrived (an expert that no token was routed to)."""
        upper = self.total.triu()
        return (upper + upper.triu(1).T) / max(self.tokens, 1)


ACCUMULATORS: dict[str, type[Accumulator]] = {"gram": Gram}


def start(needs: Iterable[str], width: int, device: torch.device) -> dict[str, Accumulator]:
    """A fresh accumulator for every statistic in `needs`."""
    return {name: ACCUMULATORS[name](width, device) for name in needs}


def pack(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One entry per distinct tensor, keyed by the comma-joined names of the layers that share it."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {",".join(sharing): tensors[sharing[0]] for sharing in names.values()}


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `pack`."""
    return {name: tensor for names, tensor in packed.items() for name in names.split(",")}
