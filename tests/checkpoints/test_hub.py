"""Where neither a folder nor the hub has a model, that is said at once."""

import time

import pytest
from huggingface_hub import constants

from svdexp.checkpoints.hub import hub_answers, out_of_reach
from svdexp.checkpoints.loading import load_config, load_tokenizer
from svdexp.runtime.errors import UserError
from svdexp.schema import ModelConfig


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    began = time.perf_counter()
    assert not hub_answers()
    for load in (load_tokenizer, load_config):
        with pytest.raises(
            UserError, match=r"^model\.path=smolm2 is no folder here, nor kept from the hub, and the hub"
        ):
            load(ModelConfig("smolm2", "smolm2"))
    assert time.perf_counter() - began < 10


def test_whoever_chose_to_be_offline_is_answered_by_the_hubs_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()
    assert not out_of_reach("owner/model", None)
