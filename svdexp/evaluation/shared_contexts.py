"""lm-eval's model, reading a context once for all its continuations.

A multiple-choice row is several requests with one context, most of whose tokens lm-eval computes again for each. On a
CPU, where a pass costs what its tokens cost, reading them once takes half the time or less. On a GPU large batches
count for more, and lm-eval's own way is faster.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from svdexp.data.windows import TOKENS_PER_BATCH
from svdexp.progress import progress

# lm-eval's ((context, continuation), context tokens, continuation tokens)
Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


class SharedContexts(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM whose requests with one context share its pass; contexts that stand alone go lm-eval's way."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        shared = [group for group in groups.values() if self._fit([requests[index] for index in group])]
        answers: dict[int, Answer] = {}
        for batch in progress(batches_of(shared, requests), "log-likelihoods"):
            found = self._read_once([[requests[index] for index in group] for group in batch])
            answers |= dict(zip(chain(*batch), found, strict=True))
        rest = [index for index in range(len(requests)) if index not in answers]
        if rest:
            alone = super()._loglikelihood_tokens([requests[index] for index in rest], disable_tqdm, override_bs)
            answers |= dict(zip(rest, alone, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _fit(self, group: Sequence[Request]) -> bool:
        """Whether there is something to share, and nothing to cut off."""
        longest = max(len(context) + len(continuation) - 1 for _, context, continuation in group)
        return len(group) > 1 and longest <= self.max_length

    @torch.no_grad()
    def _read_once(self, groups: Sequence[Sequence[Request]]) -> list[Answer]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives.

        Each group has one context, all of one length, so that nothing needs padding before the continuations.
        """
        model: Any = self.model
        cache = DynamicCache(config=model.config)
        contexts = torch.tensor([group[0][1] for group in groups], device=self.device)
        logits = model(contexts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:]
        owner = torch.tensor([index for index, group in enumerate(groups) for _ in group], device=self.device)
        continuations = [continuation for group in groups for _, _, continuation in group]
        logits = logits[owner]
        longest = max(map(len, continuations)) - 1  # nothing follows a last token
        if longest:
            padded = [[*tokens[:-1], *[0] * (longest + 1 - len(tokens))] for tokens in continuations]
            cache.batch_select_indices(owner)
            later = model(torch.tensor(padded, device=self.device), past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, later], dim=1)
        return [answer(row, torch.tensor(tokens)) for row, tokens in zip(logits, continuations, strict=True)]


def batches_of(groups: Sequence[Sequence[int]], requests: Sequence[Request]) -> list[list[Sequence[int]]]:
    """The groups, whose requests have one context, in batches with contexts of one length, of at most so many tokens
    as a batch of windows has."""
    batches: list[list[Sequence[int]]] = []
    tokens, length = 0, -1
    for group in sorted(groups, key=lambda group: len(requests[group[0]][1])):
        context = len(requests[group[0]][1])
        more = context + len(group) * max(len(requests[index][2]) for index in group)
        if context != length or tokens + more > TOKENS_PER_BATCH:
            batches.append([])
            tokens, length = 0, context
        batches[-1].append(group)
        tokens += more
    return batches


def answer(logits: torch.Tensor, tokens: torch.Tensor) -> Answer:
    """From logits (at least T, V) and the tokens (T,) that they predict."""
    known = torch.log_softmax(logits[: len(tokens)].float(), -1).cpu()
    chosen = known.gather(-1, tokens[:, None])
    return float(chosen.sum()), bool((known.argmax(-1) == tokens).all())
