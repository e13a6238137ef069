"""The block that is timed: its counts are those of a model's pass, and its rates those that explain the seconds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from svdexp.estimate import speed as timing
from svdexp.estimate.probe import FLOPS, LAYERS, SIDE, Block, launches, reached
from svdexp.models.work import BLOCK_LAUNCHES
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at

CPU = torch.device("cpu")
SHAPES = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]


def test_its_counts_are_a_models_per_block() -> None:
    """The same accounting as `Workload`, or its rates would be of something else."""
    workload = workload_at(tiny_model("llama_gqa"), 0.5, windows=6, length=24)
    blocks, counts = workload.blocks, Block([(x.m, x.n) for x in workload.layers[:7]], CPU, torch.float32).counts(24)
    whole, gradients = workload.forward(1, head=False), workload.forward_backward(1)
    assert counts.forward * blocks == whole.model
    assert counts.backward * blocks == gradients.backward - 24 * 2 * workload.head


def test_what_it_runs_is_what_it_counts() -> None:
    """Every layer is run, and attention; torch counts no fused attention, so that is counted here."""
    block = Block(SHAPES, CPU, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = block(block.inputs(24))
    assert out.shape == (1, 24, 32)
    assert counter.get_total_flops() == pytest.approx(24 * 2 * block.entries, rel=0.01)


def test_any_shapes_run() -> None:
    """Layers whose inputs nothing yields, widths that no head divides, more layers than are timed, too wide ones."""
    block = Block([(100, 70)] * 40 + [(70, 10_000_000)], CPU, torch.bfloat16)
    assert len(block.weights) == LAYERS
    assert block(block.inputs(3)).shape == (1, 3, 70)
    assert Block([(5, 3 * SIDE)], CPU, torch.bfloat16).width == SIDE
    assert Block([(4096, 4096)] * 4, CPU, torch.bfloat16).tokens(10**6) * 8 * SIDE**2 <= FLOPS


def test_rates_give_the_seconds_that_the_block_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass counted as `Speed` counts it takes what was timed."""
    block = Block(SHAPES, CPU, torch.float32)
    seen = iter([1e-3, 0.5, 2.0])  # one token; a window forward; forward and backward
    monkeypatch.setattr(timing, "_seconds", lambda compute, patience: (compute(), next(seen))[1])
    rates, counts = timing.block_rates(block, 24, 1e9), block.counts(24)
    ahead = counts.forward / rates.forward + counts.moved / 1e9 + BLOCK_LAUNCHES * rates.launch
    assert ahead == pytest.approx(0.5)
    back = counts.backward / rates.backward + 2 * counts.moved / 1e9 + 2 * BLOCK_LAUNCHES * rates.launch
    assert back == pytest.approx(1.5)
    assert 0 < BLOCK_LAUNCHES * rates.launch < 1e-3
    seen = iter([1e-3, 0.5, 0.4])  # other work made the way there slow
    assert timing.block_rates(block, 24, 1e9).backward > 0


def test_products_keep_a_part_of_the_time_whatever_is_counted_beside_them() -> None:
    assert reached(10, 1.0, moved=1e9, starts=0, bandwidth=1.0, launch=0) == 50
    counts = Block(SHAPES, CPU, torch.float32).counts(1)
    assert launches(1.0, counts, 1e9, 1.0, 1.0) == pytest.approx(0.2 / BLOCK_LAUNCHES)
