"""Which rank each matrix keeps. Allocations never exceed the budget and fill it as far as ranks allow.

Add one with one file here and its YAML in conf/method/allocation/.
"""

from svdexp.allocation.budget import Aligned, Allocation, Budget, Choosing, Evidence, Foreseen, Repeatable
from svdexp.allocation.curves import RankCurves
from svdexp.allocation.dynamic import Dynamic
from svdexp.allocation.effective_rank import EffectiveRank
from svdexp.allocation.fixed import allocate, expected_ranks, fixed_ranks
from svdexp.allocation.forms import Forms, FormsFromFile
from svdexp.allocation.from_file import FromFile
from svdexp.allocation.from_gamma import FromGamma
from svdexp.allocation.global_loss import GlobalLoss
from svdexp.allocation.learned import Learned
from svdexp.allocation.measured import Measured, measure, scaled
from svdexp.allocation.sensitivity import Sensitivity, SensitivityMetric
from svdexp.allocation.truncation_loss import TruncationLoss
from svdexp.allocation.uniform import Uniform
from svdexp.allocation.whole import Whole
from svdexp.models.matrices import Ranks

# The closed list of allocations that a checkpoint may name: those that look at budget and spectra alone.
REPEATABLE: dict[str, type[Repeatable]] = {
    part.__name__: part for part in (EffectiveRank, GlobalLoss, TruncationLoss, Uniform)
}

__all__ = [
    "REPEATABLE",
    "Aligned",
    "Allocation",
    "Budget",
    "Choosing",
    "Dynamic",
    "EffectiveRank",
    "Evidence",
    "Foreseen",
    "Forms",
    "FormsFromFile",
    "FromFile",
    "FromGamma",
    "GlobalLoss",
    "Learned",
    "Measured",
    "RankCurves",
    "Ranks",
    "Repeatable",
    "Sensitivity",
    "SensitivityMetric",
    "TruncationLoss",
    "Uniform",
    "Whole",
    "allocate",
    "expected_ranks",
    "fixed_ranks",
    "measure",
    "scaled",
]
