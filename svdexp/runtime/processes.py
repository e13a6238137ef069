"""The processes that share one run: those that torchrun or accelerate started, or this one alone.

Every process holds the model and walks through the same stages; calibration windows, decompositions and evaluation
windows are dealt out among them. When one fails, its launcher ends the others.
"""

import atexit
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

Item = TypeVar("Item")

# Siblings wait while the main process measures accuracies or saves; minutes, the default, are too few for that.
PATIENCE = timedelta(days=2)


@cache
def _leave_at_exit() -> None:
    """Take leave of the siblings before the interpreter ends.

    Their link has threads that let go of Python's objects, and one that does so too late aborts the process.
    """
    atexit.register(PartialState().destroy_process_group)


class Processes:
    """This process and its siblings.

    Attributes:
        index, count: which one this is, of how many.
        main: whether it is the one that writes and speaks.
    """

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        self.index, self.count = self._state.process_index, self._state.num_processes
        self.main = self.index == 0
        if self.count > 1:
            _leave_at_exit()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th of `items`: all processes' shares together are all of them."""
        return items[self.index :: self.count]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors."""
        return self._reduce(tensor, distributed.ReduceOp.SUM)

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum of all processes' tensors."""
        return self._reduce(tensor, distributed.ReduceOp.MAX)

    def agree(self, value: Item) -> Item:
        """The main process's value; siblings look at files at different moments."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def wait(self) -> None:
        """Return when all processes are here."""
        self._state.wait_for_everyone()

    def _reduce(self, tensor: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> torch.Tensor:
        if self.count == 1:
            return tensor
        moved = tensor.to(self._state.device, copy=True)  # NCCL wants it on this process's GPU
        distributed.all_reduce(moved, operation)
        return moved.to(tensor.device)


class Alone(Processes):
    """This process, which shares nothing with its siblings, if it has any."""

    def __init__(self) -> None:
        self.index, self.count, self.main = 0, 1, True

    def wait(self) -> None:
        """Return: nobody is waited for."""
