"""What comes before a run's first computation, on this machine: Python starts, and the model is read."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from svdexp.estimate.stages import Stage
from svdexp.models.work import Work
from svdexp.runtime.imports import seconds_to_start

SAMPLE = 2**26  # bytes of the weights, which are read to see how fast that goes
# What converting the demo's GGUF file takes, in units of what reading its config does: transformers goes through the
# whole header for that, and again for the tokenizer and for the tensors.
CONVERSION = 4.5


def beginning(weights: Sequence[Path], header: float | None, resident: float) -> list[Stage]:
    """The rows `start` and `load`, as far as they are known.

    Args:
        weights: the files that will be read; none where they are not on this disk.
        header: seconds that the header of a GGUF file took, where it has to be converted first.
        resident: bytes of the model.
    """
    rows = []
    if (start := seconds_to_start()) is not None:
        rows.append(Stage("start", Work(elapsed=start), 0.0))
    if header is not None:
        rows.append(Stage("load", Work(elapsed=CONVERSION * header), resident))
    elif weights:
        size = sum(path.stat().st_size for path in weights)
        rows.append(Stage("load", Work(elapsed=size / reading_speed(weights[0])), resident))
    return rows


def reading_speed(path: Path) -> float:
    """Bytes of a file that are read and hashed in a second, as those of weights are."""
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        sample = file.read(SAMPLE)
    hashlib.sha256(sample)
    return len(sample) / max(time.perf_counter() - began, 1e-9)
