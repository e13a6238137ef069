"""What trainings say they take, against counts by hand: tokens, passes, gradients of what is trained, and memory."""

from typing import Any

import pytest

from svdexp.descent.descent import Schedule
from svdexp.models.work import Work, Workload
from svdexp.training import BlockRefine, Distill, SequentialLora
from svdexp.training.sequential_lora import ALPACA_ITEMS
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at

WINDOWS, LENGTH, WIDTH, BLOCKS = 6, 24, 32, 3


@pytest.fixture(scope="module")
def workload() -> Workload:
    return workload_at(tiny_model("llama_gqa"), 0.5, windows=WINDOWS, length=LENGTH)


def passes(workload: Workload, tokens: float) -> Work:
    """Through the compressed model, forward and back."""
    return workload.forward_backward(tokens / LENGTH, compressed=True)


def test_steps_are_those_asked_for_or_those_that_epochs_take() -> None:
    assert Schedule(steps=7, epochs=3, batch=4).steps_over(10) == 7
    assert [Schedule(steps=None, epochs=3, batch=4).steps_over(count) for count in (8, 10)] == [6, 8]


@pytest.mark.parametrize("stored", [False, True])
def test_refining_blocks_holds_one_of_them_and_all_states_twice(workload: Workload, stored: bool) -> None:
    tokens = 5 * 2 * LENGTH
    found = BlockRefine(steps=5, batch=2, stored=stored).cost(workload)
    numbers = sum(workload.rank(layer) * (layer.m + layer.n) for layer in workload.layers)
    alone = passes(workload, tokens)
    assert found.model == alone.model
    # plain factors have gradients, moments and best values; of codes the numbers that they stand for have gradients
    trained = workload.kept_entries if stored else numbers
    held = 4 * workload.kept_entries if stored else 20 * numbers
    assert found.backward == alone.backward + 2 * tokens * trained
    states = 2 * WINDOWS * LENGTH * WIDTH * 4
    assert found.bytes == pytest.approx((alone.bytes + held) / BLOCKS + states)


@pytest.mark.parametrize(
    ("options", "taught"), [({}, True), ({"labels": 1.0}, False), ({"labels": 1.0, "hidden": 0.1}, True)]
)
def test_distillation_takes_the_dense_model_where_it_counts(
    workload: Workload, options: dict[str, Any], taught: bool
) -> None:
    """Two items of 10 tokens a window, twice all of them in batches of five: five steps."""
    tokens = 5 * 5 * 10
    found = Distill(steps=None, epochs=2, batch=5, seq_len=10, **options).cost(workload)
    teacher = workload.forward(tokens / LENGTH)
    assert found.model == pytest.approx(passes(workload, tokens).model + taught * teacher.model)
    assert found.backward == pytest.approx(passes(workload, tokens).backward + 2 * tokens * workload.factor_numbers)


def test_distillation_counts_the_items_of_a_text_of_its_own(workload: Workload) -> None:
    how: dict[str, Any] = {"steps": None, "epochs": 1, "batch": 1, "seq_len": 12, "text": "c4"}
    asked, all_of_it = Distill(**how, samples=100).cost(workload), Distill(**how).cost(workload)
    assert asked.model / all_of_it.model == pytest.approx(100 / (WINDOWS * (LENGTH // 12)))


@pytest.mark.parametrize(
    ("options", "items"), [({"text": None}, WINDOWS * 2), ({"samples": 100}, 100), ({}, ALPACA_ITEMS)]
)
def test_adapters_see_their_text_as_often_as_there_are_rounds(
    workload: Workload, options: dict[str, Any], items: int
) -> None:
    how: dict[str, Any] = {"epochs": 3, "batch": 4, "seq_len": 12, **options}
    both, each = (SequentialLora(sequential=sequential, **how).cost(workload) for sequential in (False, True))
    tokens = 3 * items * 12
    assert both.model == pytest.approx(passes(workload, tokens).model)
    assert each.model == 2 * both.model
    assert each.bytes == both.bytes
