"""Statistics of a model's activations over calibration windows, each collected once and shared.

`DenseStatistics` takes all of them from the dense model in one pass; `BlockwiseStatistics` takes one block's
at a time, from inputs that the already compressed blocks produce.
"""

from svdexp.calibration.blockwise import BlockwiseStatistics
from svdexp.calibration.dense import DenseStatistics, StatisticsSource
from svdexp.calibration.statistics import GRADIENT_STATISTICS, INPUT_STATISTICS, Statistics

__all__ = [
    "GRADIENT_STATISTICS",
    "INPUT_STATISTICS",
    "BlockwiseStatistics",
    "DenseStatistics",
    "Statistics",
    "StatisticsSource",
]
