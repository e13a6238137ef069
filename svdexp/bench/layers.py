"""One layer of each storage against the dense layer."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from svdexp.allocation import Budget
from svdexp.bench.timing import Row, speedup
from svdexp.models.portable.svdexp_layers import LAYERS
from svdexp.models.portable.svdexp_pivot import PivotLinear
from svdexp.storage import NUMBER_BITS, FactorStorage, PivotStorage, RemapStorage, Storage

KEPT = (0.8, 0.6, 0.4, 0.2)
SHAPES = [(2048, 2048), (5632, 2048), (2048, 5632)]
STORAGES: dict[str, Storage] = {"factors": FactorStorage(), "pivot": PivotStorage(), "remap": RemapStorage()}


def layer(storage: str, m: int, n: int, kept: float, align: int = 1) -> nn.Module:
    """A layer (m, n) in a storage that takes `kept` of its bits, its rank a multiple of `align`.

    What it computes does not matter.
    """
    budget = Budget(kept, {"": (m, n)}, STORAGES[storage])
    rank = budget.largest_rank("", kept * m * n * NUMBER_BITS) or 0
    made = LAYERS[storage].empty(n, rank // align * align, m, False)
    if isinstance(made, PivotLinear):
        made.order.copy_(torch.randperm(len(made.order)))
    return made


def rows() -> Iterator[Row]:
    """Every comparison."""
    for m, n in SHAPES:
        dense = nn.Linear(n, m, bias=False)
        for kept in KEPT:
            for storage in STORAGES:
                low_rank = layer(storage, m, n, kept)
                for what, tokens in (("prefill 512", 512), ("decode 1", 1)):
                    x = torch.randn(tokens, n)
                    with torch.no_grad():
                        ratio = speedup(partial(low_rank, x), partial(dense, x))
                    yield Row(f"{storage}, {what}, kept {kept}", "dense layer", f"{(m, n)}", ratio)
