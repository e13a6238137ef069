"""What an error in W costs under a metric, and what W is worth."""

import torch

from svdexp.factorisation.triangles import parts
from svdexp.factorisation.weighting import Metric


def loss(error: torch.Tensor, metric: Metric) -> float:
    """tr(Δᵀ G Δ C) of Δ (m, n), with the G and C of `metric` as they are, both whole, undamped.

    Products are in Δ's number format.
    """
    left, right = metric.left, metric.right
    if error.shape[0] < error.shape[1]:
        error, left, right = error.mT, right, left
    seen = error if right is None else weighed(right, error.mT).mT
    if left is None or left.ndim == 1:
        return float(((error if left is None else weighed(left, error)) * seen).sum(dtype=torch.float64))
    return trace(error, left.to(error), seen)


def weighed(moment: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """M X of a moment M (k, k), or its diagonal (k,), and X (k, l), in X's number format."""
    moment = moment.to(X)
    return moment[:, None] * X if moment.ndim == 1 else moment @ X


def trace(X: torch.Tensor, M: torch.Tensor, Y: torch.Tensor) -> float:
    """tr(Xᵀ M Y) of X and Y (k, l) where Y is X times a symmetric matrix, and so is M (k, k).

    What lies above M's diagonal then adds as much as what lies below it, and is not looked at.
    """
    total = torch.zeros((), dtype=torch.float64, device=X.device)
    for rows in parts(len(M)):
        seen = M[rows, : rows.start] @ X[: rows.start]
        seen.mul_(2).addmm_(M[rows, rows], X[rows])
        total += seen.mul_(Y[rows]).sum(dtype=torch.float64)
    return float(total)


def energy(W: torch.Tensor, metric: Metric) -> float:
    """tr(Wᵀ G W C), the loss where nothing is left of W (m, n), whichever side `metric` is given on."""
    seen, moment = (metric.outputs, metric.left) if metric.outputs is not None else (None, None)
    if metric.input_gradients is not None:
        seen, moment = metric.input_gradients, metric.right
    if seen is None:
        return loss(W, metric)
    if moment is None or moment.ndim == 1:
        diagonal = seen.diagonal().double()
        return float((diagonal if moment is None else diagonal * moment.double()).sum())
    return float((seen.double() * moment.double()).sum())
