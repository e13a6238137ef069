"""Log-likelihoods of a streamed model are lm-eval's own of the whole one."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from svdexp.evaluation import block_by_block
from svdexp.evaluation.accuracy import language_model
from svdexp.evaluation.block_by_block import BlockByBlock
from svdexp.models.residency import Place
from tests.evaluation.test_shared_contexts import REQUESTS
from tests.support.streaming import streamed


def test_log_likelihoods_are_those_of_lm_eval(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_by_block, "STEP", 16)  # so that there are several lengths
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that probabilities differ
    whole = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3)
    expected = whole._loglikelihood_tokens(list(REQUESTS), disable_tqdm=True)
    kind = language_model(streamed(model, tmp_path), tokenizer, 3)
    assert isinstance(kind, BlockByBlock)
    found = kind._loglikelihood_tokens(list(REQUESTS), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_a_block_is_read_once_for_all_lengths(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_by_block, "STEP", 16)
    kind = language_model(streamed(llama, tmp_path), tokenizer, 1)
    read, times = Place.read, Counter[str]()
    monkeypatch.setattr(Place, "read", lambda self: (times.update([self.name]), read(self))[1])
    kind._loglikelihood_tokens(list(REQUESTS), disable_tqdm=True)
    lengths = {min(16 * -(-(len(context) + len(answer) - 1) // 16), 64) for _, context, answer in REQUESTS}
    assert set(times.values()) == {1 + len(lengths)}  # one window of each length shows how blocks are called
