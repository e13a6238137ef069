"""What one decomposition costs: decompose.py, smaller_side.py and solvers.py in svdexp/factorisation/, step by step."""

from collections.abc import Collection
from typing import NamedTuple

import torch

from svdexp.calibration.statistics import (
    GRADIENT_STATISTICS,
    INPUT_GRADIENT_STATISTICS,
    INPUT_STATISTICS,
    OUTPUT_STATISTICS,
)
from svdexp.factorisation import Weighting, takes_smaller_side
from svdexp.models.work import Work, eigh_flops, svd_flops
from svdexp.schema import Numerics
from svdexp.storage import Form


class Sides(NamedTuple):
    """The dimensions of G and C: 2 for a matrix, 1 for a diagonal, 0 for the identity; `seen` where the one on the
    larger side is there as W sees it."""

    left: int
    right: int
    seen: bool = False


def sides(weighting: Weighting, needs: tuple[str, ...]) -> Sides:
    """Of the metric that `weighting` makes of `needs`: it is given those of a (2, 2) layer that saw nothing."""
    vectors, device = INPUT_STATISTICS | OUTPUT_STATISTICS | INPUT_GRADIENT_STATISTICS, torch.device("cpu")
    statistics = {need: vectors[need](2, device).result() for need in needs if need in vectors}
    for need in set(needs) - statistics.keys():
        statistics[need] = GRADIENT_STATISTICS[need](2, 2, device).result()
    metric = weighting(statistics)
    left, right = (0 if moment is None else moment.ndim for moment in (metric.left, metric.right))
    return Sides(left, right, metric.outputs is not None or metric.input_gradients is not None)


def decomposition(m: int, n: int, given: Sides, numerics: Numerics) -> Work:
    """Decompose an (m, n) matrix under a metric of these sides.

    Bytes: C and G in float64 and what either their roots or the solution holds beside them.
    """
    if takes_smaller_side(numerics, m, n):
        return _on_smaller_side(m, n, given)
    left, right, k = given.left, given.right, min(m, n)
    weigh = 2 * m**3 / 3 + 2 * m * m * n + m * m * k if left == 2 else 0
    check = n**3 / 3 if right == 2 else 0
    float64, eigen, square = _solution(m, n, right, numerics)
    moments = (n * n if right == 2 else 0) + (m * m if left == 2 else 0)
    damping = 4 * max(n if right == 2 else 0, m if left == 2 else 0) ** 2
    solving = (m * m if left == 2 else 0) + 4 * m * n + 5 * square**2
    return Work(float64=weigh + check + float64, eigen=eigen, bytes=8 * (moments + max(damping, solving)))


def measured(m: int, n: int, rows: int, given: Sides, forms: Collection[Form]) -> Work:
    """Measure what an (m, n) matrix loses in `forms`: of it and others of as many `rows` fed by one tensor at once.

    GPTQ takes a Cholesky factor of C and its inverse for them all, anew for each size of groups, and moves half of each
    matrix for every column; the loss is two products, the larger one of half a symmetric matrix where both sides have
    one. Of rounded factors, A B is one more, at every rank that is tried.
    """
    left, right = given.left, given.right
    losing = (2 * m * n * n if right == 2 else 0) + (2 * m * m * n if left == 2 else 0)
    losing -= m * n * max(m, n) if left == right == 2 else 0
    work = Work(bytes=8 * 3 * rows * n)
    for form in forms:
        tried = form.measured(m, n) or []
        walk = m * n * n if form.storage.waits and right == 2 else 0
        work += Work(float64=walk + losing if not form.ranked else sum(losing + 2 * rank * m * n for rank in tried))
    sizes = {getattr(form.storage, "group_size", None) for form in forms if form.storage.waits}
    shared = 4 / 3 * n**3 * m / rows * len(sizes) if right == 2 else 0
    return work + Work(float64=shared)


def _on_smaller_side(m: int, n: int, given: Sides) -> Work:
    """S, the eigenproblem and what goes back; products with W in float32, with its copy and that of the far moment."""
    k, wide = min(m, n), max(m, n)
    near, far = (given.left, given.right) if m <= n else (given.right, given.left)
    seeing = 0 if given.seen else 2 * k * k * wide + (2 * k * wide**2 if far == 2 else 0)
    rooted = k**3 / 3 + 7 * k**3 if near == 2 else 0  # a Cholesky factor, Rᵀ S R, R U and R⁻ᵀ U
    held = 8 * (7 if near == 2 else 4) * k * k
    copies = 4 * (2 * k * wide + (wide**2 if far == 2 and not given.seen else 0))
    return Work(float32=seeing + 2 * k * k * wide, float64=rooted, eigen=eigh_flops(k), bytes=held + copies)


def _solution(m: int, n: int, right: int, numerics: Numerics) -> tuple[float, float, int]:
    """FLOPs of products and of eigendecompositions in solvers.py, and the side of the largest square it works on."""
    k = min(m, n)
    if numerics is Numerics.cholesky:
        return n**3 / 3 + 2 * m * n * n + k * n * n, svd_flops(m, n), n
    if numerics is Numerics.double_svd:
        return 2 * m * n * n + 2 * k * n * n, eigh_flops(n) + svd_flops(m, n), n
    covariance = (2 * m * n * n if right == 2 else 0) + 2 * m * m * n
    return covariance + 2 * k * m * n, eigh_flops(m), m
