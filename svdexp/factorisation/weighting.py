"""Weightings: what an error in W costs, as second moments on the output and the input side.

    ‖L (W − A B) R‖_F² = tr(Δᵀ G Δ C),   Δ = W − A B,  G = Lᵀ L (m, m),  C = R Rᵀ (n, n)

Only G and C matter; which square roots L and R are taken is a question of numerics (decompose.py).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from svdexp.calibration.statistics import Statistics


@dataclass(frozen=True)
class Metric:
    """`left` is G and `right` is C; None stands for the identity."""

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None


class Weighting(Protocol):
    """Turns a layer's statistics into a metric."""

    needs: ClassVar[tuple[str, ...]]  # names in svdexp.calibration.ACCUMULATORS

    def __call__(self, statistics: Statistics) -> Metric:
        """The metric of one layer."""


@dataclass(frozen=True)
class Identity:
    """Plain SVD (Eckart-Young): every entry of W counts the same."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, statistics: Statistics) -> Metric:
        """No weights."""
        return Metric()


@dataclass(frozen=True)
class InputMoment:
    """C = E[x xᵀ]: the error of the layer's output W x. SVD-LLM (2403.07378), V2 (2503.12340), Swift-SVD."""

    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on the input side."""
        return Metric(right=statistics["gram"])
