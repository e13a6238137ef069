"""Positions of every kind: what transformers computes beyond them decides whether they are firm."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    CTRLConfig,
    GPTJConfig,
    GPTNeoConfig,
    MptConfig,
    PretrainedConfig,
)

from svdexp.models.positions import Positions, positions_of
from tests.conftest import TINY, VOCABULARY

GPT_LIKE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    **TINY,
    "gptj": GPTJConfig(**GPT_LIKE, rotary_dim=4),
    "codegen": CodeGenConfig(**GPT_LIKE, rotary_dim=4),
    "ctrl": CTRLConfig(**GPT_LIKE, dff=48),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
    ),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_are_firm_where_a_longer_text_cannot_be_computed(name: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 80, dtype=torch.int64), use_cache=False)
        firm = False
    except (IndexError, RuntimeError):
        firm = True
    assert positions_of(model) == Positions(64, firm)
    with torch.device("meta"):
        assert positions_of(AutoModelForCausalLM.from_config(CONFIGS[name])) == Positions(64, firm)


def test_a_model_without_positions_has_none() -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4))
    assert positions_of(model) is None
