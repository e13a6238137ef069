"""Sums over the first windows, kept now and then: a calibration that is killed goes on behind them."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from svdexp.runtime.disk import whole_folder
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Shelf

log = logging.getLogger(__name__)

# Seconds between two times, and how many times as long as the writing took: a killed run loses as much.
PERIOD, PATIENCE = 300.0, 50
# The entry that says how many batches of windows the others have seen.
SEEN = "seen"

# By block, by name.
Sums = Mapping[str, Mapping[str, torch.Tensor]]


class KeptSums:
    """A folder with the sums of one set of layers, one file a block; it is there whole or not at all.

    Args:
        folder: where; None: nothing is kept. Its name stands for all that the sums are of: model, windows, statistics.
    """

    def __init__(self, folder: Path | None = None):
        self.folder, self._next = folder, time.monotonic() + PERIOD

    def read(self, like: Sums) -> tuple[int, Sums]:
        """How many batches were seen, and the sums over them.

        Of none where nothing was kept, or not of all blocks as often: then `like` is given back, the sums over none.
        """
        if self.folder is None:
            return 0, like
        shelf = Shelf(self.folder)
        kept = {block: shelf.get(block) for block in like}
        found = {block: tensors for block, tensors in kept.items() if tensors is not None}
        counts = {int(tensors.pop(SEEN)) for tensors in found.values()}
        if len(counts) != 1 or found.keys() != like.keys():
            return 0, like
        return counts.pop(), found

    def keep(self, seen: int, sums: Callable[[], Sums]) -> None:
        """Let them take the place of what was kept before, if that is long ago. A full disk is told of once."""
        start = time.monotonic()
        if self.folder is None or start < self._next:
            return
        try:
            with whole_folder(self.folder) as partial:
                shelf = Shelf(partial)
                for block, tensors in sums().items():
                    shelf.put(block, {**tensors, SEEN: torch.tensor(seen)})
        except UserError as error:
            log.warning("calibration: what was summed so far is not kept, and a killed run begins anew: %s", error)
            self.discard()
            self.folder = None
        end = time.monotonic()
        self._next = end + max(PERIOD, PATIENCE * (end - start))

    def discard(self) -> None:
        """Remove what was kept, and the folder above if nothing else is in it."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()
