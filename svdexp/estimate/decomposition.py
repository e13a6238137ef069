"""What one decomposition costs: svdexp/factorisation/decompose.py and solvers.py, product by product."""

import torch

from svdexp.calibration import GRADIENT_STATISTICS, INPUT_STATISTICS
from svdexp.calibration.collector import needs_of_gradients, needs_of_inputs
from svdexp.factorisation import Weighting
from svdexp.models.work import Work, eigh_flops, svd_flops
from svdexp.schema import Numerics


def sides(weighting: Weighting) -> tuple[int, int]:
    """The dimensions of the G and C that `weighting` makes: 2 for a matrix, 1 for a diagonal, 0 for the identity.

    It is asked with statistics of a (2, 2) layer that saw nothing.
    """
    device = torch.device("cpu")
    statistics = {need: INPUT_STATISTICS[need](2, device).result() for need in needs_of_inputs(weighting.needs)}
    for need in needs_of_gradients(weighting.needs):
        statistics[need] = GRADIENT_STATISTICS[need](2, 2, device).result()
    metric = weighting(statistics)
    left, right = (0 if moment is None else moment.ndim for moment in (metric.left, metric.right))
    return left, right


def decomposition(m: int, n: int, left: int, right: int, numerics: Numerics) -> Work:
    """Decompose an (m, n) matrix under a G and a C of `left` and `right` dimensions.

    Bytes: C and G in float64 and what either its damping or the solution holds beside them.
    """
    k = min(m, n)
    weigh = 2 * m**3 / 3 + 2 * m * m * n + m * m * k if left == 2 else 0
    check = n**3 / 3 if right == 2 else 0
    float64, eigen, square = _solution(m, n, right, numerics)
    moments = (n * n if right == 2 else 0) + (m * m if left == 2 else 0)
    damping = 4 * max(n if right == 2 else 0, m if left == 2 else 0) ** 2
    solving = (m * m if left == 2 else 0) + 4 * m * n + 5 * square**2
    return Work(float64=weigh + check + float64, eigen=eigen, bytes=8 * (moments + max(damping, solving)))


def _solution(m: int, n: int, right: int, numerics: Numerics) -> tuple[float, float, int]:
    """FLOPs of products and of eigendecompositions in solvers.py, and the side of the largest square it works on."""
    k = min(m, n)
    if numerics is Numerics.cholesky:
        return n**3 / 3 + 2 * m * n * n + k * n * n, svd_flops(m, n), n
    if numerics is Numerics.double_svd:
        return 2 * m * n * n + 2 * k * n * n, svd_flops(n, n) + svd_flops(m, n), n
    rows = m if numerics is Numerics.output_eigh else k
    # where m > n, eigh first takes T with P = Q T, and at the end U back to Q U
    reduce = 2 * m * n * n + n**3 / 3 + n**3 + 2 * m * n * n if rows < m else 0
    covariance = (2 * rows * n * n if right == 2 else 0) + 2 * rows * rows * n
    return reduce + covariance + 2 * k * rows * n, eigh_flops(rows), rows
