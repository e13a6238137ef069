"""The blocks that are timed: their counts are those of a model's pass, their rates those that explain the seconds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from svdexp.estimate import speed as timing
from svdexp.estimate.probe import BLOCKS, FLOPS, SIDE, Probe, config_like, launches, reached
from svdexp.models.work import BLOCK_LAUNCHES
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at

CPU = torch.device("cpu")
SHAPES = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
STARTS = BLOCKS * BLOCK_LAUNCHES


def test_its_counts_are_a_models_per_block() -> None:
    """The same accounting as `Workload`, or its rates would be of something else."""
    workload = workload_at(tiny_model("llama_gqa"), 0.5, windows=6, length=24)
    share = workload.blocks / BLOCKS
    counts = Probe([(x.m, x.n) for x in workload.layers[:7]], CPU, torch.float32).counts(24)
    whole, gradients = workload.forward(1, head=False), workload.forward_backward(1)
    assert counts.forward * share == whole.model
    assert counts.backward * share == gradients.backward - 24 * 2 * workload.head
    assert counts.moved * share == whole.moved


def test_what_it_runs_is_what_it_counts() -> None:
    probe = Probe(SHAPES, CPU, torch.float32)
    assert isinstance(probe.model, PreTrainedModel)
    probe.model.set_attn_implementation("eager")  # torch does not count its fused attention on CPUs
    with FlopCounterMode(display=False) as counter:
        out = probe.ahead(probe.states(24))
    assert out.shape == (24, 32)
    assert bool(out.isfinite().all())
    assert counter.get_total_flops() == pytest.approx(probe.counts(24).forward, rel=0.02)
    with FlopCounterMode(display=False) as both:
        probe.there_and_back(probe.states(24))
    counts = probe.counts(24)
    assert both.get_total_flops() == pytest.approx(counts.forward + counts.backward, rel=0.02)


@pytest.mark.parametrize("shapes", [[(100, 70)] * 40, [(5, 3)], [(1, 10_000_000)], [(70, 70), (3000, 70)]])
def test_any_shapes_run(shapes: list[tuple[int, int]]) -> None:
    """Widths that no head divides, or that are narrower than one; too wide ones."""
    config = config_like(shapes)
    assert max(config.hidden_size, config.intermediate_size // 2) <= SIDE
    assert config.num_attention_heads % config.num_key_value_heads == 0
    if max(map(max, shapes)) < SIDE:
        probe = Probe(shapes, CPU, torch.bfloat16)
        assert probe.step().shape == (1, config.hidden_size)
        assert probe.there_and_back(probe.states(3)).shape == (3, config.hidden_size)
        assert probe.tokens(10**9) * 2 * probe.entries <= FLOPS


def test_the_runs_random_numbers_stay() -> None:
    state = torch.get_rng_state()
    Probe(SHAPES, CPU, torch.float32)
    assert torch.equal(state, torch.get_rng_state())


def test_rates_give_the_seconds_that_the_blocks_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass counted as `Speed` counts it takes what was timed."""
    probe = Probe(SHAPES, CPU, torch.float32)
    seen = iter([2e-3, 0.5, 2.0])  # two tokens, one by one; a window forward; forward and backward
    monkeypatch.setattr(timing, "_seconds", lambda compute, patience: (compute(), next(seen))[1])
    rates, counts, bandwidth = timing.block_rates(probe, 24, 1e9), probe.counts(24), 1e9
    ahead = counts.forward / rates.forward + counts.moved / bandwidth + STARTS * rates.launch
    assert ahead == pytest.approx(0.5)
    back = counts.backward / rates.backward + 2 * counts.moved / bandwidth + 2 * STARTS * rates.launch
    assert back == pytest.approx(1.5)
    assert 0 < STARTS * rates.launch < 1e-3
    seen = iter([2e-3, 0.5, 0.4])  # other work made the way there slow
    assert timing.block_rates(probe, 24, 1e9).backward > 0


def test_products_keep_a_part_of_the_time_whatever_is_counted_beside_them() -> None:
    assert reached(10, 1.0, moved=1e9, starts=0, bandwidth=1.0, launch=0) == 50
    counts = Probe(SHAPES, CPU, torch.float32).counts(1)
    assert launches(1.0, counts, 1e9, 1.0, 1.0) == pytest.approx(0.2 / STARTS)
