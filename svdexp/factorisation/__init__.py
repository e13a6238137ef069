"""Weighted truncation: minimise ‖L (W − A B) R‖_F, given what W is weighted by."""

from svdexp.factorisation.decompose import Decomposition, decompose
from svdexp.factorisation.weighting import Diagonal, FisherRows, Identity, InputMoment, Metric, TwoSided, Weighting

__all__ = [
    "Decomposition",
    "Diagonal",
    "FisherRows",
    "Identity",
    "InputMoment",
    "Metric",
    "TwoSided",
    "Weighting",
    "decompose",
]
