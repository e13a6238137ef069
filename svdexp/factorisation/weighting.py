"""Weightings: what an error in W costs, as second moments on the output and the input side.

    ‖L (W − A B) R‖_F² = tr(Δᵀ G Δ C),   Δ = W − A B,  G = Lᵀ L (m, m),  C = R Rᵀ (n, n)

Only G and C matter; which square roots L and R are taken is a question of numerics (decompose.py). And of the one on
the larger side of W only what W makes of it matters: W C Wᵀ (m, m) where m < n, Wᵀ G W (n, n) where m > n.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

import torch

from svdexp.calibration import Statistics
from svdexp.runtime.errors import UserError, require


@dataclass(frozen=True)
class Metric:
    """`left` is G and `right` is C: (d, d), or (d,) for a diagonal; None stands for the identity.

    Attributes:
        outputs: W C Wᵀ (m, m), in place of `right`.
        input_gradients: Wᵀ G W (n, n), in place of `left`.
    """

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    input_gradients: torch.Tensor | None = None


class Weighting(Protocol):
    """Turns a layer's statistics into a metric."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of statistics in svdexp.calibration."""

    def __call__(self, statistics: Statistics) -> Metric:
        """The metric of one layer."""


@runtime_checkable
class Reducible(Protocol):
    """A weighting that makes do with smaller statistics in place of some: those that REDUCED has for them."""

    @property
    def reducible(self) -> tuple[str, ...]:
        """Which of its needs are so."""


# Of what a second moment on one side of W is on the other: C as W C Wᵀ, G as Wᵀ G W.
REDUCED = {"gram": "output_gram", "grad_gram": "input_grad_gram"}


def needs_of(weighting: Weighting, m: int, n: int, smaller_side: bool = True) -> tuple[str, ...]:
    """The statistics that `weighting` is given of a layer with W (m, n): where it can, those on W's `smaller_side`.

    A square W takes C and G themselves, because layers that share an input share C.
    """
    reducible = weighting.reducible if isinstance(weighting, Reducible) and smaller_side else ()
    larger = {"gram"} if m < n else {"grad_gram"} if m > n else set()
    return tuple(REDUCED[need] if need in larger.intersection(reducible) else need for need in weighting.needs)


@dataclass(frozen=True)
class Identity:
    """Plain SVD (Eckart-Young): every entry of W counts the same."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, statistics: Statistics) -> Metric:
        """No weights."""
        return Metric()


@dataclass(frozen=True)
class FisherRows:
    """FWSVD (2207.00112): row i of W counts by Σ_j E[(∂loss/∂W_ij)²]."""

    needs: ClassVar[tuple[str, ...]] = ("fisher",)

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on the output side."""
        return Metric(left=statistics["fisher"].sum(1))


class ChannelScale(StrEnum):
    """What measures an input channel in ASVD's diagonal weighting."""

    abs_mean = "abs_mean"
    abs_max = "abs_max"
    fisher = "fisher"
    fisher_abs_mean = "fisher_abs_mean"


@dataclass(frozen=True)
class Diagonal:
    """ASVD (2312.05821): input channel j counts by s_j^α; R = diag(s^α), so C = diag(s^2α).

    s is the mean or the largest |x_j|, the mean Fisher information of column j, or the product of the first and
    the third, as in the reference code.
    """

    alpha: float = 0.5
    scale: ChannelScale = ChannelScale.abs_mean

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 2:
            raise UserError(f"method.weighting.alpha must be between 0 and 2, not {self.alpha:g}")

    @property
    def needs(self) -> tuple[str, ...]:
        """One statistic, or the two factors of fisher_abs_mean."""
        return ("fisher", "abs_mean") if self.scale is ChannelScale.fisher_abs_mean else (self.scale.value,)

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on the input side."""
        s = torch.ones((), dtype=torch.float64)
        for need in self.needs:
            part = statistics[need].double()
            s = s * (part.mean(0) if need == "fisher" else part)
        return Metric(right=s.pow(2 * self.alpha))


@dataclass(frozen=True)
class InputMoment:
    """C = E[x xᵀ]: the error of the layer's output W x. SVD-LLM (2403.07378), V2 (2503.12340), Swift-SVD."""

    needs: ClassVar[tuple[str, ...]] = ("gram",)
    reducible: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on the input side."""
        return Metric(right=statistics.get("gram"), outputs=statistics.get("output_gram"))


@dataclass(frozen=True)
class TwoSided:
    """C = E[x xᵀ] and G = E[g gᵀ]: the loss increase to second order under K-FAC's assumption that x and g are
    independent (1503.05671; for compression cf. 2505.17974, 2605.15626).

    `diagonal_left` keeps only the diagonal of G, which costs no square root of an (m, m) matrix.
    """

    diagonal_left: bool = False
    needs: ClassVar[tuple[str, ...]] = ("gram", "grad_gram")

    @property
    def reducible(self) -> tuple[str, ...]:
        """Both; Wᵀ G W says nothing of the diagonal of G."""
        return ("gram",) if self.diagonal_left else self.needs

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on both sides."""
        G = statistics.get("grad_gram")
        return Metric(
            left=G.diagonal() if self.diagonal_left and G is not None else G,
            right=statistics.get("gram"),
            outputs=statistics.get("output_gram"),
            input_gradients=statistics.get("input_grad_gram"),
        )


@dataclass(frozen=True)
class KFac:
    """KFAC-SVD (LEMS, ICML 2026): `TwoSided` with gradients clipped, and both moments shrunk towards the identity.

    C becomes (1 − α) C + α tr(C) / n · I, with `shrink_right` for α, and G likewise with `shrink_left`.
    """

    shrink_left: float = 0.3
    shrink_right: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("gram", "clipped_grad_gram")

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            share = getattr(self, f"shrink_{side}")
            require(0 <= share <= 1, f"method.weighting.shrink_{side} must be between 0 and 1, not {share:g}")

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on both sides."""
        G, C = statistics["clipped_grad_gram"], statistics["gram"]
        return Metric(left=shrunk(G, self.shrink_left), right=shrunk(C, self.shrink_right))


def shrunk(moment: torch.Tensor, share: float) -> torch.Tensor:
    """A second moment (d, d) of which a `share` of the trace is spread evenly over all directions; float64."""
    moment = moment.double()
    return (1 - share) * moment + share * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
