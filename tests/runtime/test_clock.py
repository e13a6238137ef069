"""The stage clock, on a clock that the test moves: a busy machine changes nothing."""

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from svdexp.runs import compression as experiment
from svdexp.runs import evaluation as standalone
from svdexp.runtime import clock as timing
from svdexp.runtime.clock import StageClock, forget_peak, peak_rss_bytes
from svdexp.schema import Precision, Residency
from svdexp.tracking import NoTracker


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its time in seconds, and the most memory that the process has held."""
    state = SimpleNamespace(now=1000.0, peak=7)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(timing, "peak_rss_bytes", lambda: state.peak)
    return state


def test_time_belongs_to_the_inner_stage_and_adds_up(machine: SimpleNamespace) -> None:
    clock = StageClock()
    machine.now += 100  # of no stage
    with clock("outer"):
        machine.now += 1
        with clock("inner"):
            machine.now += 2
        machine.now += 4
        with clock("inner"):
            machine.now += 8
    machine.now += 100
    with pytest.raises(ZeroDivisionError), clock("outer"):
        machine.now += 16 / 0
    with clock("outer"):
        machine.now += 16
    assert clock.seconds == {"outer": 1 + 4 + 16, "inner": 2 + 8}


def test_memory_is_the_peak_when_a_stage_last_ran(machine: SimpleNamespace) -> None:
    clock = StageClock()
    with clock("outer"):
        with clock("inner"):
            machine.peak = 10
        machine.peak = 20
    machine.peak = 30
    assert clock.rss == {"outer": 20, "inner": 10}


@pytest.mark.parametrize("system", ["this one", "one without /proc"])
def test_peak_memory_is_what_the_process_held_in_bytes(
    system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if system != "this one":
        monkeypatch.setattr(timing, "PROCESS", tmp_path)
    before = psutil.Process().memory_info().rss
    more = peak_rss_bytes() - before + 100_000_000  # beyond whatever was held earlier
    with mmap.mmap(-1, more) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    assert peak_rss_bytes() == pytest.approx(before + more, rel=0.02)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps one peak for ever")
def test_a_peak_is_forgotten() -> None:
    """Also what was freed in pieces too small for the system to get them back of themselves."""
    large, small = torch.ones(50_000_000), [torch.ones(10_000) for _ in range(10_000)]
    high = peak_rss_bytes()
    del large, small
    assert peak_rss_bytes() > high - 10e6  # Linux counts roughly
    forget_peak()
    assert peak_rss_bytes() < high - 500e6
    again = torch.ones(50_000_000)
    assert peak_rss_bytes() > again.nbytes


@pytest.mark.parametrize("module", [experiment, standalone])
def test_every_cell_forgets_the_peak_of_the_one_before(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class ForgottenError(Exception):
        pass

    def forget() -> None:
        raise ForgottenError

    monkeypatch.setattr(module, "forget_peak", forget)
    for name in ("build_method", "build", "check_inputs", "check_measured", "identity_of", "find"):
        monkeypatch.setattr(module, name, lambda *_: NoTracker(), raising=False)
    config: Any = SimpleNamespace(
        device="cpu",
        precision=Precision.float32,
        tracker={},
        cache=None,
        seed=0,
        model=None,
        residency=Residency.whole,
        eval=SimpleNamespace(prompts=[]),
        ratio=0.5,
        bytes=None,
        ppl=None,
    )
    with pytest.raises(ForgottenError):
        module.run(config, Path())
