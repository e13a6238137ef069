"""Weighted truncation: minimise ‖L (W − A B) R‖_F, given what W is weighted by."""

from svdexp.factorisation.decompose import Decomposition, decompose, takes_smaller_side
from svdexp.factorisation.weighting import (
    Diagonal,
    FisherRows,
    Identity,
    InputMoment,
    KFac,
    Metric,
    TwoSided,
    Weighting,
    needs_of,
)

__all__ = [
    "Decomposition",
    "Diagonal",
    "FisherRows",
    "Identity",
    "InputMoment",
    "KFac",
    "Metric",
    "TwoSided",
    "Weighting",
    "decompose",
    "needs_of",
    "takes_smaller_side",
]
