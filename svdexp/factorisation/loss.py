"""What an error in W costs under a metric, and what W is worth."""

import torch

from svdexp.factorisation.weighting import Metric


def loss(error: torch.Tensor, metric: Metric) -> float:
    """tr(Δᵀ G Δ C) of Δ (m, n), with the G and C of `metric` as they are, both whole, undamped.

    Products are in Δ's number format.
    """

    def weighed(moment: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        moment = moment.to(X)
        return moment[:, None] * X if moment.ndim == 1 else moment @ X

    left = error if metric.left is None else weighed(metric.left, error)
    right = error if metric.right is None else weighed(metric.right, error.mT).mT
    return float((left * right).sum(dtype=torch.float64))


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
