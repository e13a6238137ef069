"""The optimum from two matrices of the size of W's smaller side, of which one is inverted.

Let V = W where m ≤ n, and Wᵀ where m > n: its k rows are on the smaller side. With near = R Rᵀ the moment on that side
(G where m ≤ n, C where m > n), and S = V · far · Vᵀ the other moment as V sees it, let Rᵀ S R = U Σ² Uᵀ. Then
V ≈ R⁻ᵀ U_r · (R U_r)ᵀ V is the optimum at rank r: of the far moment nothing else is needed, and nothing is inverted.
The price of squaring is that each singular value is accurate to some 1e-8 of the largest.
"""

from bisect import bisect_left
from typing import NamedTuple

import torch

from svdexp.factorisation.eigen import eigh
from svdexp.factorisation.moments import LEAST, Root, definite, mean_of, root_of, through
from svdexp.factorisation.weighting import Metric

# Of a rank-deficient moment's mean eigenvalue: the least of these that makes it definite is added to it.
SHARES = [LEAST * 10.0**power for power in range(7)]
# Of the mean eigenvalue: what float64 leaves of zero.
MARGIN = LEAST / 10


class SmallerSide(NamedTuple):
    """W = left · right, all components, with their singular values in `right`; `damping` is that of G and C."""

    left: torch.Tensor
    right: torch.Tensor
    spectrum: torch.Tensor
    damping: tuple[float, float]


def on_smaller_side(W: torch.Tensor, metric: Metric, dtype: torch.dtype) -> SmallerSide:
    """Decompose W (m, n); left (m, k) and right (k, n) are in `dtype`, all else in float64.

    In float32, products with W would move every eigenvector whose eigenvalue is below some 1e-7 of the largest, and
    activations have a few directions that are larger than that.

    Raises:
        UserError: a second moment is not finite.
    """
    wide = W.shape[0] <= W.shape[1]
    V = (W if wide else W.mT).detach().double()
    near, far, seen = (
        (metric.left, metric.right, metric.outputs) if wide else (metric.right, metric.left, metric.input_gradients)
    )
    S, far_damping = _seen(V, far, seen)
    _, root, near_damping = definite(near)
    energies, U = eigh(root.congruent(S))
    spectrum, U = energies.flip(0).clamp_min(0).sqrt(), U.flip(1)
    inner, outer = root.transposed_divides(U), root.times(U).mT @ V
    left, right, damping = inner, outer, (near_damping, far_damping)
    if not wide:  # the singular values go from the left to the right
        scale = torch.where(spectrum > 0, spectrum, 1.0)
        left, right, damping = outer.mT / scale, (inner * scale).mT, (far_damping, near_damping)
    # in one layout, whatever a library gave: the order of later sums hangs on it
    left, right = left.to(dtype).contiguous(), right.to(dtype).contiguous()
    return SmallerSide(left, right, spectrum, damping)


def _seen(V: torch.Tensor, far: torch.Tensor | None, seen: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """S in float64, and the multiple of the identity that this adds to the far moment.

    Nothing inverts S. But where it is rank-deficient (an expert with few tokens), ranks above its own would be spent on
    directions at random without that. Zeros (an expert without tokens) become the identity.
    """
    moment = far if seen is None else seen
    if moment is None:
        return through(V, None), 0.0
    if mean_of(moment) <= 0:
        return through(V, None), 1.0
    if seen is None and (root := _certain_root(moment.double())):
        return root.seen_by(V), 0.0
    S = (through(V, far) if seen is None else seen).double()
    if _certain_root(S):
        return S, 0.0
    plain = through(V, None)
    unit = float(S.trace() / plain.trace().clamp_min(1e-300))  # V may be zeros

    def enough(share: float) -> bool:
        return _certain_root(S + share * unit * plain) is not None

    # The largest first: where a few directions are huge, float32 sums have lost more of the small ones than any share
    # makes up for. And where the rows of V depend on each other, nothing helps.
    if not enough(SHARES[-1]) or not _certain_root(plain):
        return S, 0.0
    damping = unit * SHARES[bisect_left(SHARES, True, hi=len(SHARES) - 1, key=enough)]
    return S + damping * plain, damping


def _certain_root(moment: torch.Tensor) -> Root | None:
    """That of a moment which is positive definite, and not by the rounding of its factorisation alone."""
    root = root_of(moment)
    if root is None or root.R is None:
        return root
    pivots = root.R if root.R.ndim == 1 else root.R.diagonal()
    return root if float(pivots.min()) ** 2 > MARGIN * mean_of(moment) else None
