"""Lengths and token ids are checked before anything is computed with them."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Learned, Uniform
from svdexp.runs.checks import (
    check_ids,
    check_lengths,
    check_objective,
    check_windows,
    prompt_ids,
    prompt_lengths,
    window_lengths,
)
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EfficiencyConfig, EvalConfig
from svdexp.training import BlockRefine, Distill, SequentialLora, Training
from tests.allocation.test_foreseen import method_of
from tests.conftest import tiny_model


def config_of(samples: int = 8, length: int = 128, texts: list[str] | None = None) -> Config:
    part = CalibrationConfig(text="pydoc", samples=samples, seq_len=length)
    return Config(calibration=part, eval=EvalConfig(texts=texts or [], seq_len=100), ratio=0.5)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_windows_beyond_a_table_of_positions_are_refused_by_their_keys(name: str) -> None:
    lengths = {"calibration.seq_len": 65, "eval.seq_len": 64}
    with pytest.raises(UserError, match=r"^calibration\.seq_len=65: .* the 64 positions"):
        check_lengths(tiny_model(name), lengths)
    check_lengths(tiny_model(name), {"eval.seq_len": 64})


def test_windows_beyond_rotary_positions_are_said(llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_lengths(llama, {"calibration.seq_len": 64, "eval.seq_len": 64})
        assert not caplog.records
        check_lengths(llama, {"calibration.seq_len": 80, "eval.seq_len": 90})
    (record,) = caplog.records
    assert "calibration.seq_len=80 and eval.seq_len=90" in record.getMessage()
    assert "64 positions" in record.getMessage()


def test_all_windows_of_a_run_count() -> None:
    lora = SequentialLora(text="alpaca", seq_len=77)
    method = replace(method_of(Uniform()), training={"sequential_lora": lora})
    assert window_lengths(config_of(texts=["pydoc"]), method) == {
        "calibration.seq_len": 128,
        "eval.seq_len": 100,
        "method.training.sequential_lora.seq_len": 77,
    }
    assert "eval.seq_len" not in window_lengths(config_of(), method)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (Distill(seq_len=200), r"distill\.seq_len=200 is longer than calibration\.seq_len=128"),
        (SequentialLora(text=None, seq_len=200), r"sequential_lora\.seq_len=200 is longer than"),
        (BlockRefine(held_out=1.0), r"block_refine\.held_out=1\.0 of 8 calibration windows"),
        (SequentialLora(samples=1), r"sequential_lora\.held_out=0\.06 of 1 "),
    ],
)
def test_windows_that_a_training_cannot_use(training: Training, sentence: str) -> None:
    method = replace(method_of(Uniform()), training={"it": training})
    with pytest.raises(UserError, match=sentence):
        check_windows(config_of(), method)
    for own in (SequentialLora(seq_len=200), Distill(text="c4", seq_len=200)):  # of its own text
        check_windows(config_of(), replace(method, training={"it": own}))


def test_sequences_that_ranks_cannot_be_learnt_from() -> None:
    with pytest.raises(UserError, match=r"allocation\.seq_len=200 is longer than calibration\.seq_len=128"):
        check_windows(config_of(), method_of(Learned(seq_len=200)))


def test_tokens_beyond_the_embedding(llama: PreTrainedModel, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = llama.get_input_embeddings().weight.shape[0]
    within = {"calibration": torch.tensor([[0, rows - 1]]), "eval.texts, files": torch.zeros(0, 4)}
    with caplog.at_level(logging.WARNING):
        check_ids(llama, within, tokenizer)
        assert not caplog.records
        check_ids(llama, within, range(rows + 3))
    assert f"the tokenizer has {rows + 3} tokens" in caplog.text
    with pytest.raises(UserError, match=rf"^eval\.texts, files: .* token {rows}, .* {rows} rows"):
        check_ids(llama, {"eval.texts, files": torch.tensor([[1, rows]])}, tokenizer)


def test_prompts_are_read_with_the_tokenizer(tokenizer: Any) -> None:
    ((what, ids),) = prompt_ids(["the rank"], tokenizer).items()
    assert what == "eval.prompts, 'the rank'"
    assert ids.tolist() == tokenizer("the rank")["input_ids"]


def test_prompts_need_positions_for_what_they_are_continued_by(tokenizer: Any) -> None:
    assert prompt_lengths([], tokenizer) == {}
    lengths = prompt_lengths(["the rank", "the " * 50], tokenizer)
    assert list(lengths.values()) == [len(tokenizer("the " * 50)["input_ids"]) + 20]
    with pytest.raises(UserError, match=r"eval\.prompts .* 64 positions"):
        check_lengths(tiny_model("gpt2"), lengths)


@pytest.mark.parametrize("key", [None, "ppl/pydoc", "ppl_dense/pydoc", "bytes", "acc/piqa", "latency_ms/p50"])
def test_an_objective_that_a_run_will_have_passes(key: str | None) -> None:
    config = replace(config_of(texts=["pydoc"]), objective=key)
    config.eval.efficiency = EfficiencyConfig()
    check_objective(config)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("perplexity", r"^objective=perplexity is no figure of results\.json, as ppl/pydoc is"),
        ("method", r"^objective=method is no figure"),
        ("ppl/wikitext2", r"^objective=ppl/wikitext2: eval\.texts has no wikitext2, only pydoc$"),
        ("generation_bytes/peak", r"^objective=generation_bytes/peak wants eval\.efficiency, which is null$"),
        ("flops_per_token", r"^objective=flops_per_token wants eval\.efficiency, which is null$"),
        ("tokens_per_second/decode", r"^objective=tokens_per_second/decode wants eval\.efficiency, which is null$"),
    ],
)
def test_an_objective_that_no_run_has_is_refused_before_one(key: str, sentence: str) -> None:
    config = replace(config_of(texts=["pydoc"]), objective=key)
    config.eval.efficiency = None
    with pytest.raises(UserError, match=sentence):
        check_objective(config)
