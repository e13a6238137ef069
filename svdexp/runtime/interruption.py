"""Ctrl-C ends a command with one sentence, from its first import to its last line.

Commands import this module before others: what they import next takes a second.
"""

import sys
from collections.abc import Callable
from types import TracebackType

INTERRUPTED = 130  # 128 and the signal's number, as shells have it

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def interruptible(main: Callable[[], int]) -> int:
    """What `main` returns, or the exit code of an interrupted program."""
    try:
        return main()
    except KeyboardInterrupt as interrupt:
        return say(interrupt)


def say(interrupt: KeyboardInterrupt) -> int:
    """Print that the program was interrupted, and the words that `interrupt` carries; returns the exit code."""
    print("; ".join(["svdexp: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
    return INTERRUPTED


def speaking(before: Hook) -> Hook:
    """A hook for exceptions that nobody caught, which has no traceback for an interrupt."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            say(error)
        else:
            before(kind, error, trace)

    return hook


sys.excepthook = speaking(sys.excepthook)
