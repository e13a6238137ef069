"""How factors are kept: what a rank costs in bits, and the layer that holds it.

Add a storage with one file here, its YAML in conf/storage/, and its layer in models/portable/svdexp_FORMAT.py.
"""

from svdexp.storage.awq import AWQStorage
from svdexp.storage.base import NUMBER_BITS, Form, Kept, Storage, bits_of, parts_of, shared_out, stored_bits
from svdexp.storage.delta import DeltaStorage
from svdexp.storage.factors import FactorStorage, largest_rank
from svdexp.storage.forms import FormStorage
from svdexp.storage.pivot import PivotStorage
from svdexp.storage.quantised import GPTQStorage, RTNStorage
from svdexp.storage.remap import RemapStorage
from svdexp.storage.residual import ResidualStorage

__all__ = [
    "NUMBER_BITS",
    "AWQStorage",
    "DeltaStorage",
    "FactorStorage",
    "Form",
    "FormStorage",
    "GPTQStorage",
    "Kept",
    "PivotStorage",
    "RTNStorage",
    "RemapStorage",
    "ResidualStorage",
    "Storage",
    "bits_of",
    "largest_rank",
    "parts_of",
    "shared_out",
    "stored_bits",
]
