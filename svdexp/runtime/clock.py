"""Seconds and peak memory of the stages of a run."""

import ctypes
import gc
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # Linux's account of this process
RESET_PEAK = "5"  # what clear_refs takes it for


class StageClock:
    """Adds up wall-clock seconds per stage. Stages may nest: time counts for the inner one only.

    Args:
        ended: is called with the clock whenever a stage ends, however it ends.
        began: is called with a stage's name whenever it begins, and the seconds of all by then.

    Attributes:
        seconds: by stage.
        rss: by stage, the most memory that the process had held, since `forget_peak`, when the stage last ran.
        device: by stage, the most memory that tensors held meanwhile on the fullest CUDA device; empty without one.
    """

    def __init__(
        self,
        ended: "Callable[[StageClock], None] | None" = None,
        *,
        began: Callable[[str, Mapping[str, float]], object] | None = None,
    ) -> None:
        self._ended, self._began = ended, began
        self.seconds: dict[str, float] = {}
        self.rss: dict[str, int] = {}
        self.device: dict[str, int] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time spent inside this context belongs to `stage`."""
        self._lap()
        if self._began:
            self._began(stage, self.seconds)
        self._running.append(stage)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()
            if self._ended:
                self._ended(self)

    def _lap(self) -> None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._running:
            stage = self._running[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
            self.rss[stage] = peak_rss_bytes()
            if cuda:
                self.device[stage] = max(self.device.get(stage, 0), peak_device_bytes())
        if cuda:
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        self._since = now


class IdleClock(StageClock):
    """Counts nothing: what happens in its stages counts for the stage of another clock that is running."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """No more than what is in it."""
        yield


def peak_device_bytes() -> int:
    """The most memory that tensors held on one CUDA device since its statistics were reset."""
    return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


def forget_peak() -> None:
    """Let peaks be those of what comes next: a sweep's cells may share one process.

    What earlier work holds on to counts on; where the system keeps one peak for a process's whole life, so does that.
    """
    gc.collect()
    return_freed()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text(RESET_PEAK)


def return_freed() -> None:
    """Give the system back what was freed, of which glibc otherwise keeps pieces below 32 MB, and more with time."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_bytes() -> int:
    """The most memory that this process held, since `forget_peak` where the system can tell."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", (PROCESS / "status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
