"""Imports that take seconds, and less without the garbage collector."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
        if collects:
            gc.enable()
