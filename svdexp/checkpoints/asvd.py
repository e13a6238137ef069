"""Repositories that ASVD (arXiv 2312.05821) published on the hub.

config.json has `truncation_ranks: {name of a linear layer: rank}`, the head's among them. Beside the dense tensors of
transformers the safetensors hold, for y = A (B x) + b,

    NAME.BLinear.weight  B, (r, n)
    NAME.ALinear.weight  A, (m, r), and NAME.ALinear.bias, b, where the layer has one
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from svdexp.models.portable.modeling_svdexp import Table
from svdexp.models.portable.svdexp_factors import LowRankLinear


def is_asvd(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of theirs."""
    return isinstance(config.get("truncation_ranks"), dict)


def read(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files under the names that they have in our layers.

    Not by from_pretrained's key_mapping, which save_pretrained would undo.
    """
    state = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    return {name.replace(".BLinear.", ".rank_in.").replace(".ALinear.", ".rank_out."): state[name] for name in state}


def take_table(config: Any) -> Table:
    """The layer table in a config of theirs, from which their own keys are taken away."""
    ranks = config.truncation_ranks
    del config.truncation_ranks
    if "lm_head" in ranks:  # two matrices of its own are tied to nothing
        config.tie_word_embeddings = False
    return {name: {"storage": LowRankLinear.kind, "rank": rank} for name, rank in ranks.items()}
