"""Reading a context once gives lm-eval's own log-likelihoods."""

import copy
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from svdexp.evaluation import shared_contexts
from svdexp.evaluation.accuracy import language_model
from svdexp.evaluation.shared_contexts import PADDING, SharedContexts, alike

TOKENS = [
    ([5, 6, 7, 8, 9, 10], [3, 4, 5]),
    ([5, 6, 7, 8, 9, 10], [3]),
    ([11, 12], [13, 14]),  # alone
    ([10, 9, 8, 7, 6, 5], [3, 4, 5, 6]),  # another context of the same length
    ([10, 9, 8, 7, 6, 5], [12]),
    ([10, 9, 8, 7, 6, 5], [3, 5]),
    ([5, 6, 7, 8, 9, 10], [7, 8, 9, 10, 11, 12]),
    ([30, 31, 32, 33], [3, 4, 5, 6]),  # a shorter context
    ([30, 31, 32, 33], [12, 14]),
    ([20], [21]),  # one token each
    ([20], [22]),
    (list(range(3, 63)), [4, 5, 6, 7, 8, 9, 10]),  # beyond the context of 64
    (list(range(3, 63)), [4]),
]
REQUESTS = [(("", ""), context, continuation) for context, continuation in TOKENS]


def test_log_likelihoods_are_those_of_lm_eval(model: PreTrainedModel, tokenizer: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that probabilities differ
    wrap = {"pretrained": model, "tokenizer": copy.deepcopy(tokenizer), "batch_size": 3}
    expected = HFLM(**wrap)._loglikelihood_tokens(list(REQUESTS), disable_tqdm=True)
    found = SharedContexts(**wrap)._loglikelihood_tokens(list(REQUESTS), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_a_context_is_read_once(llama: PreTrainedModel, tokenizer: Any) -> None:
    lengths: list[int] = []
    llama.register_forward_pre_hook(lambda module, args: lengths.append(args[0].numel()))
    SharedContexts(pretrained=llama, tokenizer=copy.deepcopy(tokenizer))._loglikelihood_tokens(REQUESTS[:2])
    assert lengths == [6, 4], "six tokens of context, then two continuations without their last tokens, padded to two"


def test_long_continuations_are_read_apart_from_short_ones(llama: PreTrainedModel, tokenizer: Any) -> None:
    """40 tokens beside 2 would be padding for the most part; the log-likelihoods are lm-eval's still."""
    context = [5, 6, 7]
    requests = [(("", ""), context, [3 + (i * k) % 90 for k in range(n)]) for i, n in enumerate([41, 3, 40, 2, 1, 3])]
    wrap = {"pretrained": llama, "tokenizer": copy.deepcopy(tokenizer), "batch_size": 1}
    expected = HFLM(**wrap)._loglikelihood_tokens(list(requests), disable_tqdm=True)
    shapes: list[tuple[int, ...]] = []
    llama.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    found = SharedContexts(**wrap)._loglikelihood_tokens(list(requests), disable_tqdm=True)
    assert shapes == [(1, 3), (2, 40), (4, 2)]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_parts_hold_every_index_once_and_little_padding() -> None:
    lengths = [0, 7, 40, 39, 8, 8, 0, 1, 40, 5, 5, 5]
    parts = alike(lengths)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert all(sum(lengths[part[0]] - lengths[index] for index in part) <= PADDING for part in parts)
    assert [lengths[part[0]] for part in parts] == [40, 8, 0]


@pytest.mark.parametrize("kind", [HFLM, SharedContexts])
@pytest.mark.parametrize("alone", [True, False])
def test_choices_of_a_16_bit_model_do_not_tie(
    llama: PreTrainedModel, tokenizer: Any, kind: type, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-likelihoods are of its logits in float32: as bfloat16 most of them would round to one number."""
    model = llama.bfloat16()
    monkeypatch.setattr(shared_contexts, "SharedContexts", kind)
    contexts = [[5, 6, 7, index if alone else 8] for index in range(20, 40)]
    requests = [(("", ""), context, [3 + index]) for index, context in enumerate(contexts)]
    with torch.no_grad():
        known = model(torch.tensor(contexts)).logits[:, -1]
    exact = known.float().log_softmax(-1)[range(20), range(3, 23)]
    rounded = known.log_softmax(-1)[range(20), range(3, 23)]
    assert rounded.unique().numel() < 0.7 * exact.unique().numel()
    answers = language_model(model, tokenizer, 1)._loglikelihood_tokens(list(requests), disable_tqdm=True)
    found = torch.tensor([value for value, _ in answers])
    assert torch.allclose(found, exact, atol=1e-5)
