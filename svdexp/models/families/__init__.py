"""What a matrix is in a model: one file a family, each a `Family`. Add one with one file here and its entry below."""

from svdexp.models.families.base import Family
from svdexp.models.families.experts import Experts
from svdexp.models.families.linear import Linear

LINEAR = Linear()
EXPERTS = Experts()
FAMILIES: tuple[Family, ...] = (LINEAR, EXPERTS)

__all__ = ["EXPERTS", "FAMILIES", "LINEAR", "Family"]
