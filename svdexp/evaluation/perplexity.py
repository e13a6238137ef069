"""Perplexity over fixed windows of text."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.data import at_once, batches, scored_tokens
from svdexp.models.path import BlockPath
from svdexp.models.pictures import is_picture
from svdexp.models.residency import residency_of
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress

log = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """A loss, or the perplexity it makes, is no finite number."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood per predicted token.

    Attributes:
        value: the perplexity.
        tokens: how many tokens were predicted and count.
        stderr: standard error of `value` from the spread between windows (delta method); nan for one window.
    """

    value: float
    tokens: int
    stderr: float


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    windows: torch.Tensor,
    batch_size: int | None = 1,
    what: str | None = "perplexity",
    scored: torch.Tensor | None = None,
    processes: Processes | None = None,
) -> Perplexity:
    """Perplexity of `model` on windows (N, L), each without context from the one before.

    Log-likelihoods are float32, their sums float64.

    Args:
        model: a causal language model.
        windows: token ids.
        batch_size: windows at a time; None begins with what TOKENS_PER_BATCH allows and halves it when CUDA's memory
            does not suffice. The result does not depend on it.
        what: names the progress bar and is blamed in errors; None shows no bar.
        scored: (N, L) bool, which tokens count; by default all of text but the first of each window, which nothing
            predicts.
        processes: all of them must call this; each measures its share of the windows.

    Raises:
        NotFiniteError: a window's loss is not finite, none is ever dropped; or the perplexity exceeds all numbers.
        UserError: not even one window fits into the device's memory, or not `batch_size` of them.
    """
    if scored is None:
        scored = scored_tokens(len(windows), windows.shape[1], windows.shape[1]) & ~is_picture(windows)
    mine = range(len(windows)) if processes is None else processes.share(range(len(windows)))
    found = window_losses(model, windows, scored, mine, batch_size, what)
    losses = torch.zeros(len(windows), dtype=torch.float64)
    losses[list(mine)] = torch.tensor(found, dtype=torch.float64)
    if processes is not None:
        losses = processes.add_up(losses)
    return summarise(losses, scored.sum(1).double(), what)


def window_losses(
    model: PreTrainedModel,
    windows: torch.Tensor,
    scored: torch.Tensor,
    mine: Sequence[int],
    batch_size: int | None,
    what: str | None,
) -> list[float]:
    """The summed loss of each of the windows whose indices are in `mine`.

    Raises:
        NotFiniteError, UserError: as `perplexity`.
    """
    if residency_of(model):
        return streamed_losses(model, windows, scored, mine, what)
    size = batch_size or at_once(windows)
    losses: list[float] = []
    while len(losses) < len(mine):
        try:
            _measure(model, windows, scored, mine, size, what, losses)
        except torch.OutOfMemoryError as error:
            if batch_size is not None or size == 1:
                many = f"eval.batch_size={size} windows" if size > 1 else "one window"
                sentence = f"{what or 'perplexity'}: the device's memory is too small for {many}"
                raise UserError(f"{sentence} of {windows.shape[1]} tokens at a time") from error
            size //= 2
            log.info("%s: out of memory, going on with %d windows at a time", what or "perplexity", size)
    return losses


def streamed_losses(
    model: PreTrainedModel, windows: torch.Tensor, scored: torch.Tensor, mine: Sequence[int], what: str | None
) -> list[float]:
    """`window_losses` of a streamed model: all windows go through one block after the other, one at a time."""
    if not mine:
        return []
    path = BlockPath(model, windows[list(mine)])
    while path.waiting:
        path.advance(what)
    losses = []
    for index, state in zip(mine, path.states, strict=True):
        logits = path.leave(windows[index][None], state).logits[0]
        losses.append(window_loss(logits, windows[index].to(logits.device), scored[index], index, what))
    return losses


def window_loss(
    logits: torch.Tensor, tokens: torch.Tensor, scored: torch.Tensor, index: int, what: str | None
) -> float:
    """The summed loss of a window's logits (L, v): of those of its tokens (L,) that count.

    Raises:
        NotFiniteError: it is not finite; `index` says which window's it is.
    """
    chosen = scored[1:].to(logits.device)
    nll = nn.functional.cross_entropy(logits[:-1][chosen].float(), tokens[1:][chosen], reduction="none")
    loss = float(nll.cpu().double().sum())
    if not math.isfinite(loss):
        name = what or "perplexity"
        raise NotFiniteError(f"{name}: the loss of window {index} is {loss}; try precision=float32")
    return loss


def summarise(losses: torch.Tensor, counts: torch.Tensor, what: str | None = None) -> Perplexity:
    """Perplexity from each window's summed loss and count of tokens, both (N,) float64.

    The mean loss is a ratio of sums; its standard error is that of a ratio estimator over windows, which is the usual
    s / √N where all windows count equally many tokens.
    """
    n, tokens = len(losses), float(counts.sum())
    mean = float(losses.sum()) / tokens
    try:
        value = math.exp(mean)
    except OverflowError as error:
        name = what or "perplexity"
        raise NotFiniteError(f"{name}: exp of the mean loss, {mean:g}, is not finite; try precision=float32") from error
    residuals = losses - mean * counts
    spread = math.sqrt(n / (n - 1) * float(residuals.square().sum())) / tokens if n > 1 else math.nan
    return Perplexity(value, int(tokens), value * spread)


def _measure(
    model: PreTrainedModel,
    windows: torch.Tensor,
    scored: torch.Tensor,
    mine: Sequence[int],
    size: int,
    what: str | None,
    losses: list[float],
) -> None:
    """Append the summed losses of those windows of `mine` that `losses` does not have yet."""
    parts = batches(windows[list(mine[len(losses) :])], size)
    for _, batch in progress(parts, what) if what else parts:
        batch = batch.to(model.device)
        logits = model(batch, use_cache=False).logits
        for row, tokens in zip(logits, batch, strict=True):
            index = mine[len(losses)]
            losses.append(window_loss(row, tokens, scored[index], index, what))
