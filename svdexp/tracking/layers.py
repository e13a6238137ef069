"""What became of every targeted layer: layers.json, one entry per layer, in the model's order."""

import re
from typing import Any

from svdexp.engine.result import Compression

LayerRow = dict[str, Any]


def layer_rows(compression: Compression) -> list[LayerRow]:
    """Per layer: where it is, its shape (m, n) and rank (null: dense), its form where
    there was a choice, the share of the weighted energy that it lost (null without a weighting), and its bits before
    and after."""
    dense_bits = compression.dense_bits / sum(layer.m * layer.n for layer in compression.layers)
    return [
        {
            "name": layer.name,
            **place(layer.name, layer.group),
            "m": layer.m,
            "n": layer.n,
            "rank": compression.ranks[layer.name],
            **({"form": compression.forms[layer.name]} if compression.forms else {}),
            "energy_lost": compression.errors.get(layer.name),
            "bits": compression.layer_bits[layer.name],
            "bits_dense": round(layer.m * layer.n * dense_bits),
        }
        for layer in compression.layers
    ]


def place(name: str, group: str) -> dict[str, Any]:
    """The index of the block called `group` and the projection's name in it; experts share a projection.

    Outside the blocks, where a layer is its own group, the block is None.
    """
    block = group.rpartition(".")[2]
    if name == group or not block.isdigit():
        return {"block": None, "projection": name}
    return {"block": int(block), "projection": re.sub(r"\.\d+(?=\.|$)", ".*", name.removeprefix(f"{group}."))}
