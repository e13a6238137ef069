"""lm-eval's model, reading a context once for all its continuations.

A multiple-choice row is several requests with one context, most of whose tokens lm-eval computes again for each. On a
CPU, where a pass costs what its tokens cost, reading them once takes half the time or less. On a GPU large batches
count for more, and lm-eval's own way is faster.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

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
        answers: dict[int, Answer] = {}
        shared = [group for context, group in groups.items() if self._fit(context, [requests[i][2] for i in group])]
        for group in progress(shared, "log-likelihoods"):
            found = self._read_once(requests[group[0]][1], [requests[index][2] for index in group])
            answers |= dict(zip(group, found, strict=True))
        rest = [index for index in range(len(requests)) if index not in answers]
        if rest:
            alone = super()._loglikelihood_tokens([requests[index] for index in rest], disable_tqdm, override_bs)
            answers |= dict(zip(rest, alone, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _fit(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> bool:
        """Whether there is something to share, and nothing to cut off."""
        return len(continuations) > 1 and len(context) + max(map(len, continuations)) - 1 <= self.max_length

    @torch.no_grad()
    def _read_once(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Answer]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        model: Any = self.model
        cache = DynamicCache(config=model.config)
        tokens = torch.tensor([context], device=self.device)
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:]
        logits = logits.expand(len(continuations), -1, -1)
        longest = max(map(len, continuations)) - 1  # nothing follows a last token
        if longest:
            padded = [[*tokens[:-1], *[0] * (longest + 1 - len(tokens))] for tokens in continuations]
            cache.batch_repeat_interleave(len(continuations))
            later = model(torch.tensor(padded, device=self.device), past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, later], dim=1)
        return [answer(row, torch.tensor(tokens)) for row, tokens in zip(logits, continuations, strict=True)]


def answer(logits: torch.Tensor, tokens: torch.Tensor) -> Answer:
    """From logits (at least T, V) and the tokens (T,) that they predict."""
    known = torch.log_softmax(logits[: len(tokens)].float(), -1).cpu()
    chosen = known.gather(-1, tokens[:, None])
    return float(chosen.sum()), bool((known.argmax(-1) == tokens).all())
