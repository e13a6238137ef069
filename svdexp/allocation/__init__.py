"""Which rank each matrix keeps. Every allocation meets the budget: never above, as close below as ranks allow."""

from svdexp.allocation.budget import Allocation, Budget, Ranks
from svdexp.allocation.from_file import FromFile
from svdexp.allocation.uniform import Uniform

__all__ = ["Allocation", "Budget", "FromFile", "Ranks", "Uniform"]
