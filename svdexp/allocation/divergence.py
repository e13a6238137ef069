"""How far a model's predictions move when one matrix is replaced: KL divergence from the dense model's, per token.

What stands before the replaced matrix's block is not computed again: the dense model's hidden states wait at the
block's entrance. Models whose blocks do not run alone take whole passes. Either way the values are the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.evaluation import NotFiniteError
from svdexp.models.behaviour import why_not_replayed
from svdexp.models.matrices import matrices_in
from svdexp.models.path import BlockPath
from svdexp.models.residency import at_hand, residency_of, running
from svdexp.runtime.progress import progress

# By the names of matrices, what builds the layer that replaces each; of a streamed model its block is then at hand.
Replacements = Mapping[str, Callable[[], nn.Module]]


class Divergences:
    """Measures on windows (N, L) of tokens, in the model's number format; the model stays as it was."""

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor):
        self.model, self.windows = model, windows
        self._matrices = {matrix.name: matrix for matrix in matrices_in(model)}
        alone = residency_of(model) is not None or why_not_replayed(model) is None
        self._path = BlockPath(model, windows) if alone else None

    @torch.no_grad()
    def __call__(self, replacements: Replacements, what: str | None = None) -> dict[str, float]:
        """Of the model with each of `replacements` alone, by name.

        The hidden states of all of them travel together, N L d numbers each in the CPU's memory, so that every block
        is visited once, behind a progress bar where it is said for `what`. Another call must not go back to a block
        before the first one of this call.

        Raises:
            NotFiniteError: with one of them the model's predictions are no numbers.
        """
        blocks = {name: self._block(name) for name in replacements}
        inside = {name: layer for name, layer in replacements.items() if blocks[name] is not None}
        expected = self._dense  # now, while the model is dense
        logits: dict[str, Iterable[torch.Tensor]] = {
            name: self._whole(name, layer) for name, layer in replacements.items() if name not in inside
        }
        if self._path is not None and inside:
            first = next(block for block in self._path.waiting if block in blocks.values())
            self._path.reach(first)
            states = self._behind(self._path.fork(self.model), inside, blocks, what)
            logits |= {name: self._leave(self._path, part) for name, part in states.items()}
        return {name: divergence(name, expected, part) / self.windows.numel() for name, part in logits.items()}

    def _block(self, name: str) -> str | None:
        """The block that holds the matrix, to be run alone; None: it is outside, or blocks do not run alone."""
        blocks = self._path.blocks if self._path is not None else ()
        return next((block for block in blocks if name.startswith(f"{block}.")), None)

    def _whole(self, name: str, layer: Callable[[], nn.Module]) -> list[torch.Tensor]:
        """The logits (L, v) per window, by passes of the whole model."""
        with self._replaced(name, layer()):
            return [self._run(window) for window in self.windows]

    def _behind(
        self, path: BlockPath, replacements: Replacements, blocks: Mapping[str, str | None], what: str | None
    ) -> dict[str, list[torch.Tensor]]:
        """What comes out of the last block with each of the replacements, in blocks that `path` has before it."""
        carried: dict[str, list[torch.Tensor]] = {}
        ahead = list(path.waiting)
        pairs = list(zip(ahead, [*ahead[1:], ""], strict=True))
        for block, then in progress(pairs, what) if what else pairs:
            with at_hand(self.model, block, then=then):
                for name, states in carried.items():
                    carried[name] = [path.run(block, state).cpu() for state in states]
                for name in (name for name in replacements if blocks[name] == block):
                    with self._replaced(name, replacements[name]()):
                        carried[name] = [path.run(block, state).cpu() for state in path.states]
                if len(carried) < len(replacements):
                    path.advance()
        return carried

    @contextmanager
    def _replaced(self, name: str, layer: nn.Module) -> Iterator[None]:
        """Within this context `layer` is in the place of a matrix; afterwards, error or not, what was there before."""
        matrix = self._matrices[name]
        before = matrix.layer(self.model)
        matrix.put(self.model, layer)
        try:
            yield
        finally:
            matrix.put(self.model, before)

    def _leave(self, path: BlockPath, states: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The logits (L, v) of states behind the last block, one per window."""
        for window, state in zip(self.windows, states, strict=True):
            yield path.leave(window[None], state).logits[0]

    @cached_property
    def _dense(self) -> list[torch.Tensor]:
        """Log-probabilities of the dense model, (L, v) float32 a window."""
        if self._path is None:
            return [self._run(window).float().log_softmax(-1) for window in self.windows]
        path = self._path.fork(self.model)
        while path.waiting:
            path.advance()
        return [logits.float().log_softmax(-1) for logits in self._leave(path, path.states)]

    def _run(self, window: torch.Tensor) -> torch.Tensor:
        with running(self.model):
            logits: torch.Tensor = self.model(window[None].to(self.model.device), use_cache=False).logits[0]
        return logits


def divergence(name: str, expected: Sequence[torch.Tensor], logits: Iterable[torch.Tensor]) -> float:
    """Σ over windows and tokens of KL(expected ‖ softmax(logits)), expected being log-probabilities; (L, v) each.

    Over the vocabulary sums are float32, over tokens float64.

    Raises:
        NotFiniteError: it is no number; `name` is the matrix that is to blame.
    """
    total = 0.0
    for ours, theirs in zip(expected, logits, strict=True):
        per_token = nn.functional.kl_div(theirs.float().log_softmax(-1), ours, reduction="none", log_target=True).sum(1)
        total += float(per_token.double().sum())
    if not math.isfinite(total):
        raise NotFiniteError(f"allocation: with {name} truncated the model gives no numbers; try precision=float32")
    return total
