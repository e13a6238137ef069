"""Greedy continuations against transformers' own, and the end of a text."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.evaluation import continuations
from svdexp.evaluation.generation import TOKENS

PROMPTS = ["the rank of a", "independent rows"]


def test_continuations_are_what_transformers_generates(model: PreTrainedModel, tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    for prompt, text in zip(PROMPTS, continuations(model, tokenizer, PROMPTS), strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(ids, do_sample=False, max_new_tokens=TOKENS, eos_token_id=end)[0].tolist()
        assert text == tokenizer.decode([token for token in theirs[ids.shape[1] :] if token != end])


def test_a_text_ends_where_the_model_ends_it(llama: PreTrainedModel, tokenizer: Any) -> None:
    (said,) = continuations(llama, tokenizer, ["the rank of"])
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = said.split()[0]
    assert continuations(llama, ending, ["the rank of"]) == [""]
