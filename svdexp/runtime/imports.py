"""Imports that take seconds, and less without the garbage collector."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def imports() -> Iterator[None]:
    """For what a command imports first: it stays as long as the process, so nothing looks for garbage in it.

    The collector is off within this context, and later passes over what there is by then; going through the modules of
    torch and transformers takes it two seconds, most of them when the process ends. A second cell, which imports
    nothing, leaves it alone: what the first one left is garbage.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            _age_at_first()
        if collects:
            gc.enable()


def seconds_to_start() -> float | None:
    """What it took from the process's begin until a command had imported what it needs; None outside of commands."""
    return _age_at_first() if _age_at_first.cache_info().currsize else None


@cache
def _age_at_first() -> float:
    """This process's age when this was called first."""
    import psutil  # no command's first line waits for it

    return time.time() - float(psutil.Process().create_time())
