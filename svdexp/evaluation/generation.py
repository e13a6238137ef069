"""What a model says: greedy continuations, for the eye."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from svdexp.data import resolve_bos, tokenize, with_first
from svdexp.data.captions import Viewer, shown_by
from svdexp.schema import Bos

TOKENS = 20


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str],
    bos: Bos = Bos.tokenizer,
    viewer: Viewer | None = None,
) -> list[str]:
    """The most likely next 20 tokens of each prompt, one token at a time, fewer where the model ends its text.

    Prompts begin with BOS unless `bos` comes to none. Special tokens that are written out in them are parsed: whoever
    writes a prompt means them. Prompts that show an image begin as the `viewer` has it.
    """
    return [_continue(model, tokenizer, _ids(prompt, tokenizer, bos, viewer)) for prompt in prompts]


def _ids(prompt: str, tokenizer: Any, bos: Bos, viewer: Viewer | None) -> torch.Tensor:
    """(1, T)."""
    image, text = shown_by(prompt)
    if image is not None:
        assert viewer is not None, "a prompt shows an image"
        return viewer.asked(image, text, "eval.prompts").prefix[None]
    ids = tokenize(prompt, tokenizer, parse_special=True)[None]
    first = resolve_bos(bos, tokenizer).token
    return with_first(None if ids[0, :1].tolist() == [first] else first, ids)


def _continue(model: PreTrainedModel, tokenizer: Any, ids: torch.Tensor) -> str:
    said = takewhile(lambda token: token != tokenizer.eos_token_id, greedy(model, ids, TOKENS))
    return str(tokenizer.decode(list(said)))


def greedy(model: PreTrainedModel, ids: torch.Tensor, count: int) -> Iterator[int]:
    """The most likely next tokens of one text (1, T), each computed when it is asked for; `count` at most."""
    cache, tokens = DynamicCache(config=model.config), ids.to(model.device)
    for _ in range(count):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1:].argmax(-1)
        yield int(tokens.item())
