"""lm-eval's model where that is streamed (models/residency.py): all requests go through one block after the other.

As lm-eval does, requests are padded on the right, where a model that predicts the next token does not look. Blocks are
replayed at a few lengths only, because how they are called is recorded at each.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from svdexp.evaluation.shared_contexts import Answer, Request, answer
from svdexp.models.path import BlockPath
from svdexp.models.residency import at_hand
from svdexp.runtime.progress import progress

STEP = 64  # lengths are its multiples


class BlockByBlock(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM of a streamed model, which answers by log-likelihoods and does not write."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        rows = [tuple((context + continuation)[-(self.max_length + 1) : -1]) for _, context, continuation in requests]
        asked: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(rows):
            asked.setdefault(row, []).append(index)
        answers: dict[int, Answer] = {}
        lengths: dict[int, list[tuple[int, ...]]] = {}
        for row in asked:
            lengths.setdefault(min(STEP * math.ceil(len(row) / STEP), self.max_length), []).append(row)
        paths = gone_through(self.model, {length: padded(part, length) for length, part in lengths.items()})
        for length, path in paths.items():
            for row, state in zip(progress(lengths[length], "log-likelihoods"), path.states, strict=True):
                logits = path.leave(padded([row], length), state).logits[0, : len(row)]
                for index in asked[row]:
                    tokens = torch.tensor(requests[index][2])
                    answers[index] = answer(logits[len(row) - len(tokens) :], tokens)
        return [answers[index] for index in range(len(requests))]


@torch.no_grad()
def gone_through(model: Any, windows: dict[int, torch.Tensor]) -> dict[int, BlockPath]:
    """Windows (N, L) of several lengths behind the last block, each length on a path; a block is read once for all."""
    paths = {length: BlockPath(model, part) for length, part in windows.items()}
    names = list(next(iter(paths.values())).waiting) if paths else []
    for name, then in zip(names, [*names[1:], ""], strict=True):
        with at_hand(model, name, then=then):
            for path in paths.values():
                path.advance("log-likelihoods")
    return paths


def padded(rows: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Rows of tokens as (N, length), padded on the right."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
