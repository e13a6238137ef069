"""Statistics of a model's activations over calibration windows, each collected once and shared.

`DenseStatistics` takes all of them from the dense model in one pass; `BlockwiseStatistics` takes one block's
at a time, from inputs that the already compressed blocks produce.
"""

from svdexp.calibration.blockwise import BlockwiseStatistics
from svdexp.calibration.dense import DenseStatistics, StatisticsSource
from svdexp.calibration.statistics import ACCUMULATORS, Statistics

__all__ = ["ACCUMULATORS", "BlockwiseStatistics", "DenseStatistics", "Statistics", "StatisticsSource"]
