"""lm-eval's model, reading a context once for all its continuations.

A multiple-choice row is several requests with one context, most of whose tokens lm-eval computes again for each. On a
CPU, where a pass costs what its tokens cost, reading them once takes half the time or less. On a GPU large batches
count for more, and lm-eval's own way is faster.
"""

from collections.abc import Sequence
from copy import copy
from inspect import signature
from itertools import chain
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from svdexp.data.windows import TOKENS_PER_BATCH
from svdexp.runtime.progress import progress

# lm-eval's ((context, continuation), context tokens, continuation tokens)
Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]

# So many tokens take about as long as what a pass costs beside its tokens: reading all weights once.
PADDING = 32


class SharedContexts(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM whose requests with one context share its pass; contexts that stand alone go lm-eval's way."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        if not continues(self.model):
            own: list[Answer] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return own
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        shared = [group for group in groups.values() if self._fit([requests[index] for index in group])]
        answers: dict[int, Answer] = {}
        for batch in progress(batches_of(shared, requests, looks_past_padding(self.model)), "log-likelihoods"):
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

        Contexts are padded on the right, where nothing that counts sees it; continuations then look past the padding
        and stand in the positions after their own context.
        """
        model: Any = self.model
        cache = DynamicCache(config=model.config)
        contexts = [group[0][1] for group in groups]
        lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        ends, end = torch.unique(lengths - 1, return_inverse=True)
        first = model(self._padded(contexts), past_key_values=cache, use_cache=True, logits_to_keep=ends).logits
        owner = torch.tensor([index for index, group in enumerate(groups) for _ in group], device=self.device)
        logits = first[owner, end[owner]][:, None]
        continuations = [continuation for group in groups for _, _, continuation in group]
        answers: dict[int, Answer] = {}
        for part in alike([len(continuation) - 1 for continuation in continuations]):
            tokens = [continuations[index] for index in part]
            found = logits[part]
            if len(tokens[0]) > 1:  # nothing follows a last token
                later = self._read_on(cache, lengths, owner[part], [row[:-1] for row in tokens])
                found = torch.cat([found, later], dim=1)
            answers |= {index: answer(*row) for index, *row in zip(part, found, map(torch.tensor, tokens), strict=True)}
        return [answers[index] for index in range(len(continuations))]

    def _read_on(
        self, cache: DynamicCache, lengths: torch.Tensor, owner: torch.Tensor, rows: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Logits (R, T, V) of R `rows` of at most T tokens, each behind one context in `cache`, that of `owner` (R,).

        The cache, whose contexts have `lengths`, stays as it is.
        """
        tokens = self._padded(rows)
        steps = torch.arange(tokens.shape[1], device=self.device)
        seen = torch.arange(int(lengths.max()), device=self.device) < lengths[owner, None]
        logits: torch.Tensor = self.model(
            tokens,
            attention_mask=torch.cat([seen, torch.ones_like(tokens, dtype=torch.bool)], dim=1).long(),
            position_ids=lengths[owner, None] + steps,
            past_key_values=selected(cache, owner),
            use_cache=True,
        ).logits
        return logits

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)


def batches_of(groups: Sequence[Sequence[int]], requests: Sequence[Request], pads: bool) -> list[list[Sequence[int]]]:
    """The groups, whose requests have one context, in batches of at most so many tokens as a batch of windows has.

    Unless the model `pads`, the contexts of a batch have one length.
    """
    batches: list[list[Sequence[int]]] = []
    tokens, length = 0, -1
    for group in sorted(groups, key=lambda group: len(requests[group[0]][1])):
        context = len(requests[group[0]][1])
        more = context + len(group) * max(len(requests[index][2]) for index in group)
        if length < 0 or tokens + more > TOKENS_PER_BATCH or (context != length and not pads):
            batches.append([])
            tokens = 0
        length = context
        batches[-1].append(group)
        tokens += more
    return batches


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths`, longest first, in parts which padding to their longest makes at most PADDING longer."""
    parts: list[list[int]] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        padding += lengths[parts[-1][0]] - lengths[index] if parts else 0
        if not parts or padding > PADDING:
            parts.append([])
            padding = 0
        parts[-1].append(index)
    return parts


def selected(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """Another cache with `rows` of `cache`, which stays as it is."""
    part = copy(cache)
    part.layers = [copy(layer) for layer in cache.layers]
    part.batch_select_indices(rows)
    return part


def cache_kinds(model: Any) -> set[type]:
    """The kinds of the layers of the model's cache."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def continues(model: Any) -> bool:
    """Whether several tokens may follow a cached context: recurrent layers keep no place to go on from."""
    return cache_kinds(model) <= {DynamicLayer, DynamicSlidingWindowLayer}


def looks_past_padding(model: Any) -> bool:
    """Whether padding inside the cache can be hidden: not where a layer looks back a number of places."""
    return "position_ids" in signature(model.forward).parameters and cache_kinds(model) <= {DynamicLayer}


def answer(logits: torch.Tensor, tokens: torch.Tensor) -> Answer:
    """From logits (at least T, V) and the tokens (T,) that they predict."""
    known = torch.log_softmax(logits[: len(tokens)].float(), -1).cpu()
    chosen = known.gather(-1, tokens[:, None])
    return float(chosen.sum()), bool((known.argmax(-1) == tokens).all())
