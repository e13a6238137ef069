"""Two ways to do one thing, timed in turn."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

REPEATS = 5


class Row(NamedTuple):
    """What was timed, the plain way it is compared with, on which shape, and plain seconds / ours."""

    what: str
    plain: str
    shape: str
    ratio: float


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speedup(ours: Callable[[], object], plain: Callable[[], object]) -> float:
    """Median of `plain` / `ours` over alternating pairs, A B A B …, after one warm-up of each."""
    ours(), plain()
    return median(seconds(plain) / seconds(ours) for _ in range(REPEATS))
