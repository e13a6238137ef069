"""How factors are kept: what a rank costs in bits, and the layer that holds it.

Add a storage with one file here, its YAML in conf/storage/, and its layer in `LAYERS`, the closed list that
a checkpoint may name.
"""

from svdexp.storage.base import Storage, stored_bits
from svdexp.storage.factors import FactorStorage, empty_factor_layer

LAYERS = {"factors": empty_factor_layer}

__all__ = ["LAYERS", "FactorStorage", "Storage", "stored_bits"]
