"""Reads the tensors of one block on a thread while another block computes."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

# By name what gives a tensor, and the format that it is wanted in.
Wanted = Mapping[str, tuple[Callable[[], torch.Tensor], torch.dtype]]


class Ahead:
    """At most one block that is read before its turn; on a GPU it is moved on a stream of its own, from pinned memory.

    Attributes:
        group: the block's name; None: there is none.
    """

    def __init__(self, device: torch.device):
        self.device, self.group = device, ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="svdexp-prefetch")
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._found: Future[dict[str, torch.Tensor]] | None = None

    def begin(self, group: str, wanted: Wanted) -> None:
        """Read a block from now on; what was read of another is let go."""
        if group != self.group:
            self.group, self._found = group, self._thread.submit(self._read, wanted)

    def take(self, group: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a block on the device, by name, waited for; None where another was read, or none."""
        found = self._found if group == self.group else None
        self.group, self._found = "", None
        if found is None:
            return None
        tensors = found.result()
        if self._stream:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._stream)
            for tensor in tensors.values():
                tensor.record_stream(computing)
        return tensors

    def _read(self, wanted: Wanted) -> dict[str, torch.Tensor]:
        if self._stream is None:
            return {name: read().to(self.device, dtype, copy=True) for name, (read, dtype) in wanted.items()}
        with torch.cuda.stream(self._stream):
            return {
                name: read().to(dtype).pin_memory().to(self.device, non_blocking=True)
                for name, (read, dtype) in wanted.items()
            }
