"""Perplexity against its definition; speed as a plausible positive figure."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.errors import UserError
from svdexp.evaluation import measure_efficiency, perplexity
from svdexp.schema import EfficiencyConfig


@pytest.mark.parametrize("batch_size", [1, 4])
def test_perplexity_is_its_definition(model: PreTrainedModel, windows: torch.Tensor, batch_size: int) -> None:
    logits = model(windows).logits.double()
    probabilities = logits.softmax(-1)[:, :-1].gather(-1, windows[:, 1:, None]).squeeze(-1)
    losses = -probabilities.log()
    result = perplexity(model, windows, batch_size)
    assert result.value == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert result.tokens == losses.numel() == 6 * 23
    spread = losses.mean(1).std().item() / math.sqrt(6)
    assert result.stderr == pytest.approx(math.exp(losses.mean()) * spread, rel=1e-4)


def test_a_non_finite_loss_names_the_window(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="window 0 is nan"):
        perplexity(llama, windows)


def test_speed_is_measured_with_a_cache(model: PreTrainedModel) -> None:
    speed = measure_efficiency(model, EfficiencyConfig(batch_size=2, prompt=8, generate=4, repeats=1), "tiny")
    assert speed.prefill > 0
    assert speed.decode > 0
