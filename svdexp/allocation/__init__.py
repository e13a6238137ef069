"""Which rank each matrix keeps. Allocations never exceed the budget and fill it as far as ranks allow."""

from svdexp.allocation.budget import Allocation, Budget, Evidence, Ranks
from svdexp.allocation.from_file import FromFile
from svdexp.allocation.uniform import Uniform

__all__ = ["Allocation", "Budget", "Evidence", "FromFile", "Ranks", "Uniform"]
