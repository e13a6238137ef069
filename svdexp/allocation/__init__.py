"""Which rank each matrix keeps. Allocations never exceed the budget and fill it as far as ranks allow.

Add one with one file here and its YAML in conf/method/allocation/.
"""

from svdexp.allocation.budget import Allocation, Budget, Evidence, Ranks
from svdexp.allocation.dynamic import Dynamic
from svdexp.allocation.effective_rank import EffectiveRank
from svdexp.allocation.from_file import FromFile
from svdexp.allocation.global_loss import GlobalLoss
from svdexp.allocation.sensitivity import Sensitivity, SensitivityMetric
from svdexp.allocation.truncation_loss import TruncationLoss
from svdexp.allocation.uniform import Uniform

__all__ = [
    "Allocation",
    "Budget",
    "Dynamic",
    "EffectiveRank",
    "Evidence",
    "FromFile",
    "GlobalLoss",
    "Ranks",
    "Sensitivity",
    "SensitivityMetric",
    "TruncationLoss",
    "Uniform",
]
