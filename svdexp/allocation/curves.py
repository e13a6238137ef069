"""What a training of ranks leaves beside the ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RankCurves:
    """How ranks were learned, one value per optimiser step.

    Attributes:
        perplexity: mean exp(cross-entropy) of the step's sequences under soft truncation.
        ratio: the kept fraction that the positions stand for, before they become whole ranks.
        gamma: per layer, its truncation position γ after the step.
    """

    perplexity: Sequence[float]
    ratio: Sequence[float]
    gamma: Mapping[str, Sequence[float]]
