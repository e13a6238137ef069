"""What gradient statistics are of."""

import torch
from torch import nn

from svdexp.models.pictures import is_picture

UNSEEN = -100  # what cross_entropy leaves out


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The summed loss of the logits (b, L, v) of tokens (b, L), in float32; what stands for an image has none."""
    targets = tokens[:, 1:].flatten()
    targets = targets.masked_fill(is_picture(targets), UNSEEN)
    loss = nn.functional.cross_entropy
    return loss(logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum", ignore_index=UNSEEN)
