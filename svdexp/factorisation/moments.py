"""Second moments as a decomposition takes them: with a root where one is to be inverted, and as W sees them."""

import math
from dataclasses import dataclass

import torch

from svdexp.factorisation.triangles import lower_congruence, lower_times, symmetric_product, upper_times
from svdexp.runtime.errors import UserError

# Of the mean eigenvalue: the least that is added to a moment that is not positive definite. As small as that, because
# real but small directions beside huge outliers shall survive.
LEAST = 1e-12


@dataclass(frozen=True)
class Root:
    """R with M = R Rᵀ (k, k): a lower triangle (k, k), a diagonal (k,), or None for the identity. X are (k, …)."""

    R: torch.Tensor | None

    def times(self, X: torch.Tensor) -> torch.Tensor:
        """R X."""
        if self.R is None:
            return X
        return self.R[:, None] * X if self.R.ndim == 1 else lower_times(self.R, X)

    def transposed_times(self, X: torch.Tensor) -> torch.Tensor:
        """Rᵀ X."""
        if self.R is None:
            return X
        return self.R[:, None] * X if self.R.ndim == 1 else upper_times(self.R.mT, X)

    def congruent(self, S: torch.Tensor) -> torch.Tensor:
        """Rᵀ S R of a symmetric S (k, k), as `eigh` reads it: right on and below the diagonal alone."""
        if self.R is None or self.R.ndim == 1:
            return self.transposed_times(self.transposed_times(S).mT)
        return lower_congruence(self.R, S)

    def transposed_divides(self, X: torch.Tensor) -> torch.Tensor:
        """R⁻ᵀ X."""
        if self.R is None:
            return X
        return X / self.R[:, None] if self.R.ndim == 1 else torch.linalg.solve_triangular(self.R.mT, X, upper=True)

    def seen_by(self, V: torch.Tensor) -> torch.Tensor:
        """V M Vᵀ (l, l) of V (l, k), in two thirds of the products that `through` makes of M itself."""
        X = self.transposed_times(V.mT).mT
        return symmetric_product(X, X)


def definite(moment: torch.Tensor | None) -> tuple[torch.Tensor | None, Root, float]:
    """The second moment in float64, its root, and the multiple of the identity that it took to have one.

    Float32 sums of a rank-deficient moment have eigenvalues of either sign near zero: the multiple grows tenfold from
    LEAST until there is a root. A moment of zeros (an expert without tokens) becomes the identity: then all weights
    count the same.

    Raises:
        UserError: it is not finite.
    """
    if moment is None:
        return None, Root(None), 0.0
    mean = mean_of(moment)
    if mean <= 0:
        return None, Root(None), 1.0
    moment = moment.double()
    damping, damped = 0.0, moment
    while (root := root_of(damped)) is None:
        damping = 10 * damping if damping else LEAST * mean
        damped = moment.clone()
        (damped if moment.ndim == 1 else damped.diagonal()).add_(damping)
    return damped, root, damping


def root_of(moment: torch.Tensor) -> Root | None:
    """That of a moment in float64, or None where it is not positive definite."""
    if moment.ndim == 1:
        return Root(moment.sqrt()) if bool((moment > 0).all()) else None
    root, failed = torch.linalg.cholesky_ex(moment)
    return None if failed.item() else Root(root)


def mean_of(moment: torch.Tensor) -> float:
    """The mean eigenvalue.

    Raises:
        UserError: it is not finite.
    """
    mean = float((moment if moment.ndim == 1 else moment.diagonal()).double().mean())
    if not math.isfinite(mean):
        raise UserError("calibration: a second moment overflowed; the activations are too large, try precision=float32")
    return mean


def through(V: torch.Tensor, moment: torch.Tensor | None) -> torch.Tensor:
    """V M Vᵀ (k, k) of V (k, l) and a moment M (l, l), (l,) for a diagonal, or None for the identity."""
    if moment is None:
        return symmetric_product(V, V)
    M = moment.to(V)
    return symmetric_product(V * M if M.ndim == 1 else V @ M, V)
