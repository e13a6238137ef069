"""The benchmark measures what it says; its figures are for `make bench`."""

import pytest
import torch

from svdexp.bench.estimates import said
from svdexp.bench.layers import STORAGES, layer
from svdexp.bench.stacks import SMALL, compressed, decode, prefill, random_model
from svdexp.bench.timing import REPEATS, speedup
from svdexp.estimate.devices import Machine
from svdexp.estimate.speed import Speed
from svdexp.estimate.stages import Stage
from svdexp.estimate.table import render
from svdexp.models.work import Work
from svdexp.storage import stored_bits


@pytest.mark.parametrize("storage", STORAGES)
def test_a_timed_layer_takes_the_share_it_claims(storage: str) -> None:
    made = layer(storage, 48, 32, 0.4)
    assert 0.35 < stored_bits(made) / (48 * 32 * 16) <= 0.4
    assert made(torch.randn(3, 32)).shape == (3, 48)


def test_a_timed_model_runs() -> None:
    with torch.no_grad():
        for model in (random_model(SMALL), compressed(SMALL, "pivot", 0.4)):
            prefill(model)
            decode(model)


def test_pairs_alternate() -> None:
    calls: list[str] = []
    assert speedup(lambda: calls.append("ours"), lambda: calls.append("plain")) > 0
    assert calls == ["ours", "plain"] + ["plain", "ours"] * REPEATS


@pytest.mark.parametrize("seconds", [12.0, 340.0, 3 * 3600.0, 20 * 86400.0])
def test_an_estimates_total_is_read_from_its_table(seconds: float) -> None:
    table = render([Stage("one", Work(model=seconds), 1e9)], Machine("it", 1e9, Speed(1.0, 1.0, 1.0, 1.0), ""), "a run")
    assert said(table) == pytest.approx(seconds, rel=0.05)
