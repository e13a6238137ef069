"""How factors are kept: what a rank costs in bits, and the layer that holds it.

Add a storage with one file here, its YAML in conf/storage/, and its layer in `LAYERS`, the closed list that
a checkpoint may name.
"""

from svdexp.models.low_rank import LowRankLinear
from svdexp.storage.base import NUMBER_BITS, Storage, stored_bits
from svdexp.storage.elastic import ElasticStorage, largest_rank
from svdexp.storage.factors import FactorStorage, empty_factor_layer
from svdexp.storage.pivot import PivotLinear, PivotStorage, empty_pivot_layer
from svdexp.storage.remap import RemapLinear, RemapStorage, empty_remap_layer

LAYERS = {
    LowRankLinear.kind: empty_factor_layer,
    PivotLinear.kind: empty_pivot_layer,
    RemapLinear.kind: empty_remap_layer,
}

__all__ = [
    "LAYERS",
    "NUMBER_BITS",
    "ElasticStorage",
    "FactorStorage",
    "PivotLinear",
    "PivotStorage",
    "RemapLinear",
    "RemapStorage",
    "Storage",
    "empty_pivot_layer",
    "empty_remap_layer",
    "largest_rank",
    "stored_bits",
]
