"""What a model says: greedy continuations, for the eye."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

TOKENS = 20


@torch.no_grad()
def continuations(model: PreTrainedModel, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The most likely next 20 tokens of each prompt, one token at a time, fewer where the model ends its text."""
    return [_continue(model, tokenizer, prompt) for prompt in prompts]


def _continue(model: PreTrainedModel, tokenizer: Any, prompt: str) -> str:
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    said: list[int] = []
    for _ in range(TOKENS):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1:].argmax(-1)
        if tokens.item() == tokenizer.eos_token_id:
            break
        said.append(int(tokens.item()))
    return str(tokenizer.decode(said))
