"""The stage clock."""

import time

import pytest

from svdexp.timing import StageClock, peak_rss_bytes


def test_time_belongs_to_the_inner_stage() -> None:
    clock = StageClock()
    with clock("outer"):
        time.sleep(0.05)
        with clock("inner"):
            time.sleep(0.1)
    assert clock.seconds["inner"] == pytest.approx(0.1, abs=0.04)
    assert clock.seconds["outer"] == pytest.approx(0.05, abs=0.04)
    assert 0 < clock.rss["inner"] <= clock.rss["outer"] <= peak_rss_bytes()


def test_peak_memory_counts_bytes() -> None:
    assert 10e6 < peak_rss_bytes() < 1e12
