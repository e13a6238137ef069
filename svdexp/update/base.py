"""What every update can do."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix, Ranks


class Place(Protocol):
    """Puts factors in the place of a layer."""

    def __call__(self, name: str, factors: Factors, *, trial: bool = False) -> None:
        """Of the layer called `name`; on `trial` they will be replaced again and need no storage's form."""


class Repair(Protocol):
    """An update at work: called for one group of layers (a block) after the other, in model order."""

    def __call__(
        self, group: str, weights: Mapping[str, torch.Tensor], factors: Mapping[str, Factors], place: Place
    ) -> None:
        """Put factors in the place of every layer in `weights` with `place`.

        Args:
            group: the block, in which all layers are still dense.
            weights: of the layers that get a rank, the W (m, n) that factors shall be near, dense.
            factors: what truncation found for them; empty where the update makes its own.
        """


def place_all(group: str, weights: Mapping[str, torch.Tensor], factors: Mapping[str, Factors], place: Place) -> None:
    """The repair of a method without an update: what truncation found."""
    for name, pair in factors.items():
        place(name, pair)


class Update(Protocol):
    """Improves what truncation found, or makes factors by itself."""

    makes_factors: ClassVar[bool]  # whether it needs none to begin with

    def start(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, ranks: Ranks) -> Repair:
        """Begin with the dense `model`, calibration `windows` (N, L), and the ranks of `layers`."""
