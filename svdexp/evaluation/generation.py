"""What a model says: greedy continuations, for the eye."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from svdexp.data import resolve_bos, tokenize, with_first
from svdexp.schema import Bos

TOKENS = 20


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: Any, prompts: Sequence[str], bos: Bos = Bos.tokenizer
) -> list[str]:
    """The most likely next 20 tokens of each prompt, one token at a time, fewer where the model ends its text.

    Prompts begin with BOS unless `bos` comes to none. Special tokens that are written out in them are parsed: whoever
    writes a prompt means them.
    """
    return [_continue(model, tokenizer, prompt, resolve_bos(bos, tokenizer).token) for prompt in prompts]


def _continue(model: PreTrainedModel, tokenizer: Any, prompt: str, first: int | None) -> str:
    cache = DynamicCache(config=model.config)
    ids = tokenize(prompt, tokenizer, parse_special=True)[None].to(model.device)
    tokens = with_first(None if ids[0, :1].tolist() == [first] else first, ids)
    said: list[int] = []
    for _ in range(TOKENS):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1:].argmax(-1)
        if tokens.item() == tokenizer.eos_token_id:
            break
        said.append(int(tokens.item()))
    return str(tokenizer.decode(said))
