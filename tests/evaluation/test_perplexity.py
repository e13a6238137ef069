"""Perplexity against independent implementations; what must not change it, and what is an error."""

import logging
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.data import cut_windows, scored_tokens
from svdexp.evaluation import NotFiniteError, perplexity
from svdexp.evaluation.perplexity import window_losses
from svdexp.runtime.errors import UserError
from tests.conftest import VOCABULARY, tiny_model


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(3))


def sliding(stream: torch.Tensor, length: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    windows = cut_windows(stream, length, None, knob="eval.windows", stride=stride)
    return windows, scored_tokens(*windows.shape, stride)


def transformers_own(model: PreTrainedModel, windows: torch.Tensor, scored: torch.Tensor) -> float:
    """Perplexity from the loss that transformers computes itself, one window at a time, weighted by tokens."""
    total, count = 0.0, 0
    for tokens, counts in zip(windows, scored, strict=True):
        labels = torch.where(counts, tokens, -100)
        predicted = int(counts[1:].sum())
        total += model(tokens[None], labels=labels[None]).loss.item() * predicted
        count += predicted
    return math.exp(total / count)


@pytest.mark.parametrize("stride", [24, 7])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_perplexity_is_what_transformers_own_loss_gives(
    model: PreTrainedModel, batch_size: int | None, stride: int
) -> None:
    windows, scored = sliding(random_tokens(150), 24, stride)
    result = perplexity(model, windows, batch_size, scored=scored)
    assert result.value == pytest.approx(transformers_own(model, windows, scored), rel=1e-5)
    assert result.tokens == scored.sum()


@pytest.mark.parametrize(("length", "stride"), [(12, 1), (12, 5), (12, 11), (12, 12), (40, 12)])
def test_stride_scores_each_token_once_with_the_context_of_its_first_window(length: int, stride: int) -> None:
    model, stream = tiny_model("llama"), random_tokens(40)
    starts = range(0, len(stream) - length + 1, stride)
    losses = []
    for position in range(1, starts[-1] + length):
        start = next(start for start in starts if start <= position < start + length)
        if start == position:  # the first token of a window that no other overlaps
            continue
        logits = model(stream[None, start:position]).logits[0, -1]
        losses.append(-logits.double().log_softmax(-1)[stream[position]].item())
    windows, scored = sliding(stream, length, stride)
    result = perplexity(model, windows, scored=scored)
    assert result.tokens == len(losses)
    assert result.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_batches_and_padding_change_nothing(model: PreTrainedModel) -> None:
    windows, scored = sliding(random_tokens(150), 24, 10)
    expected = perplexity(model, windows, 1, scored=scored)
    padded = torch.cat([windows, random_tokens(len(windows), 9)], dim=1)
    counts = torch.cat([scored, torch.zeros(len(windows), 9, dtype=torch.bool)], dim=1)
    for batch_size in (2, 3, 13, 100, None):
        for found in (
            perplexity(model, windows, batch_size, scored=scored),
            perplexity(model, padded, batch_size, scored=counts),
        ):
            assert found.value == pytest.approx(expected.value, rel=1e-6)
            assert found.stderr == pytest.approx(expected.stderr, rel=1e-4)
            assert found.tokens == expected.tokens


def test_the_standard_error_is_that_of_a_ratio_of_sums() -> None:
    """Windows of unequal counts, against the delta method written out."""
    model, (windows, scored) = tiny_model("llama"), sliding(random_tokens(150), 24, 10)
    sums = torch.tensor(
        [
            -model(row[None]).logits[0, :-1].double().log_softmax(-1).gather(-1, row[1:, None])[counts[1:]].sum()
            for row, counts in zip(windows, scored, strict=True)
        ]
    )
    counts = scored.sum(1).double()
    mean = sums.sum() / counts.sum()
    variance = (sums - mean * counts).var() / (len(sums) * counts.mean() ** 2)
    expected = (mean.exp() * variance.sqrt()).item()
    assert perplexity(model, windows, scored=scored).stderr == pytest.approx(expected, rel=1e-4)
    assert math.isnan(perplexity(model, windows[:1]).stderr)


class Second:
    """The second of two processes; what the first one measured is added where processes add up."""

    def __init__(self, first: torch.Tensor) -> None:
        self.first = first

    def share(self, items: range) -> list[int]:
        return list(items)[1::2]

    def add_up(self, losses: torch.Tensor) -> torch.Tensor:
        assert not losses[0::2].any()
        return losses + self.first


def test_each_process_measures_windows_of_its_own() -> None:
    model, (windows, scored) = tiny_model("llama"), sliding(random_tokens(150), 24, 10)
    first = torch.zeros(len(windows), dtype=torch.float64)
    first[0::2] = torch.tensor(window_losses(model, windows, scored, range(0, len(windows), 2), 1, None)).double()
    found = perplexity(model, windows, scored=scored, processes=Second(first))  # type: ignore[arg-type]
    alone = perplexity(model, windows, scored=scored)
    assert (found.value, found.stderr) == pytest.approx((alone.value, alone.stderr))


class Seeing:
    """A model to which what is an image is any token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device

    def __call__(self, tokens: torch.Tensor, **options: Any) -> Any:
        return self.model(tokens.clamp_min(0), **options)


def test_images_are_not_predicted() -> None:
    model, windows = tiny_model("llama"), random_tokens(4, 24)
    windows[:, 1:5] = -9
    text = windows >= 0
    text[:, 0] = False
    found = perplexity(Seeing(model), windows)  # type: ignore[arg-type]
    assert found.tokens == 4 * 19
    assert found.value == pytest.approx(transformers_own(model, windows.clamp_min(0), text), rel=1e-5)


class Crowded:
    """A model on a device where only `most` windows fit at a time."""

    def __init__(self, model: PreTrainedModel, most: int) -> None:
        self.model, self.most, self.device, self.sizes = model, most, model.device, []

    def __call__(self, tokens: torch.Tensor, **options: Any) -> Any:
        self.sizes.append(len(tokens))
        if len(tokens) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(tokens, **options)


def test_batches_are_halved_until_they_fit(llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    windows = random_tokens(120, 24)
    crowded = Crowded(llama, 30)
    with caplog.at_level(logging.INFO, "svdexp"):
        result = perplexity(crowded, windows, None)  # type: ignore[arg-type]
    assert crowded.sizes == [85, 42, 21, 21, 21, 21, 21, 15]  # 2048 tokens allow 85 windows
    assert "going on with 21 windows at a time" in caplog.text
    assert result.value == pytest.approx(perplexity(llama, windows).value, rel=1e-6)


@pytest.mark.parametrize(("batch_size", "most", "words"), [(8, 7, "eval.batch_size=8"), (None, 0, "one window of 24")])
def test_what_does_not_fit_is_one_sentence(llama: PreTrainedModel, batch_size: Any, most: int, words: str) -> None:
    with pytest.raises(UserError, match=f"the device's memory is too small for {words}"):
        perplexity(Crowded(llama, most), random_tokens(20, 24), batch_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_non_finite_loss_names_its_window_in_any_batch(llama: PreTrainedModel, batch_size: int) -> None:
    windows = random_tokens(6, 24).clamp(max=VOCABULARY - 2)
    windows[3, 5] = VOCABULARY - 1
    llama.config.tie_word_embeddings = False
    llama.model.embed_tokens.weight = torch.nn.Parameter(llama.model.embed_tokens.weight.clone(), requires_grad=False)
    llama.model.embed_tokens.weight[VOCABULARY - 1] = torch.nan
    with pytest.raises(NotFiniteError, match="wikitext2: the loss of window 3 is nan; try precision=float32"):
        perplexity(llama, windows, batch_size, "wikitext2")


def test_a_perplexity_beyond_all_numbers_is_one_sentence(llama: PreTrainedModel) -> None:
    llama.model.norm.weight.mul_(1e6)
    with pytest.raises(NotFiniteError, match=r"exp of the mean loss, .* is not finite"):
        perplexity(llama, random_tokens(6, 24))
