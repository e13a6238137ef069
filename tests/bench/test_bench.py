"""The benchmark measures what it says; its figures are for `make bench`."""

import pytest
import torch

from svdexp.bench.layers import STORAGES, layer
from svdexp.bench.stacks import SMALL, compressed, decode, prefill, random_model
from svdexp.bench.timing import REPEATS, speedup
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
