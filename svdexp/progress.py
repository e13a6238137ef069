"""Progress bars, one look everywhere; silent where nobody watches."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterate over `items` behind a bar on standard error; a log file gets a line every ten seconds."""
    interactive = sys.stderr.isatty()
    yield from tqdm(items, desc=what, leave=False, mininterval=0.2 if interactive else 10.0, dynamic_ncols=True)
