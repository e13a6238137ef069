"""The record of what was done to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from svdexp.allocation import RankCurves
from svdexp.checkpoints.elastic import Elastic
from svdexp.engine.search import Search
from svdexp.models.matrices import Matrix, Ranks
from svdexp.training import Trained


@dataclass(frozen=True)
class Compression:
    """What `compress` did to the model it was given.

    Attributes:
        layers: the targeted layers, in the model's order.
        ratio: the kept fraction of their bits that was asked for.
        ranks: per layer; None was not factorised.
        forms: per layer, where the allocation chose that, the word of its form, `pivot@37` at a rank; else empty.
        errors: per layer, the share of the weighted energy ‖L W R‖² that truncation removed, in [0, 1], W what the
            storage wants decomposed, or that the layer's form loses as it was measured; empty where there is no
            weighting.
        damping: per layer, the largest multiple of the identity that was added to a second moment; empty likewise.
        spectra: per layer, the descending singular values of L W R, (min(m, n),); empty likewise, and
            where there are forms.
        dense_bits, layer_bits: all targeted layers before, and each of them after, counted from their tensors.
        elastic: where it was asked for, what `checkpoint.save` adds so that lower ratios can be loaded.
        curves: how ranks were learned, where they were.
        training: what became of each training, by its name.
        left_dense: what the targets select and was not compressed, reason → names; `layers` are without it.
        search: how the ratio was found, where a perplexity was asked for.
    """

    layers: Sequence[Matrix]
    ratio: float
    ranks: Ranks
    errors: dict[str, float]
    damping: dict[str, float]
    spectra: dict[str, torch.Tensor]
    dense_bits: int
    layer_bits: dict[str, int]
    elastic: Elastic | None = None
    curves: RankCurves | None = None
    training: Mapping[str, Trained] = field(default_factory=dict)
    left_dense: Mapping[str, list[str]] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    search: Search | None = None

    @property
    def bits(self) -> int:
        """All targeted layers after."""
        return sum(self.layer_bits.values())

    @property
    def achieved_ratio(self) -> float:
        """The kept fraction of the targeted layers' bits."""
        return self.bits / self.dense_bits
