"""Perplexity over fixed windows of text."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.data import batches
from svdexp.errors import UserError
from svdexp.progress import progress


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood per predicted token.

    Attributes:
        value: the perplexity.
        tokens: how many tokens were predicted; the first of each window is not.
        stderr: standard error of `value` from the spread between windows (delta method); nan for one window.
    """

    value: float
    tokens: int
    stderr: float


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 1, what: str | None = "perplexity"
) -> Perplexity:
    """Perplexity of `model` on windows (N, L), each without context from the one before.

    Log-likelihoods are float32, their sum float64. `what` names the progress bar; None shows none.

    Raises:
        UserError: a window's loss is not finite; no window is ever dropped.
    """
    losses = []
    parts = batches(windows, batch_size)
    for start, batch in progress(parts, what) if what else parts:
        batch = batch.to(model.device)
        logits = model(batch, use_cache=False).logits
        for index, (row, tokens) in enumerate(zip(logits, batch, strict=True)):
            loss = nn.functional.cross_entropy(row[:-1].float(), tokens[1:], reduction="mean")
            if not torch.isfinite(loss):
                raise UserError(f"eval: the loss of window {start + index} is {loss.item()}; try precision=float32")
            losses.append(loss.item())
    per_window = torch.tensor(losses, dtype=torch.float64)
    value = math.exp(per_window.mean())
    spread = float(per_window.std()) if len(losses) > 1 else math.nan
    return Perplexity(value, windows.shape[0] * (windows.shape[1] - 1), value * spread / math.sqrt(len(losses)))
