"""Statistics of a model's activations over calibration windows, each collected once and shared.

`DenseStatistics` takes all of them from the dense model in one pass; `BlockwiseStatistics` takes one block's
at a time, from inputs that the already compressed blocks produce.
"""

from svdexp.calibration.blockwise import BlockwiseStatistics
from svdexp.calibration.dense import DenseStatistics, StatisticsSource
from svdexp.calibration.needs import Needs, of_backward
from svdexp.calibration.statistics import STATISTICS, Statistics

__all__ = [
    "STATISTICS",
    "BlockwiseStatistics",
    "DenseStatistics",
    "Needs",
    "Statistics",
    "StatisticsSource",
    "of_backward",
]
