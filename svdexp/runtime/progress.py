"""Progress bars, one look everywhere; silent where nobody watches."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from svdexp.runtime.processes import Processes

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterate over `items` behind a bar on standard error; a log file gets a line every ten seconds.

    Of several processes only the main one shows it.
    """
    interactive = sys.stderr.isatty()
    yield from tqdm(
        items,
        desc=what,
        disable=not Processes().main,
        leave=False,
        mininterval=0.2 if interactive else 10.0,
        dynamic_ncols=True,
    )
