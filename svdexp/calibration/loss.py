"""What gradient statistics are of."""

import torch
from torch import nn


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The summed loss of the logits (b, L, v) of tokens (b, L), in float32."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")
