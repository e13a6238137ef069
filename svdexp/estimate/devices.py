"""Devices that are not here: what their makers publish, and what of it real work reaches.

Peaks are NVIDIA's, dense: H100 SXM5, A100 SXM4 and GeForce RTX 4090 data sheets; float32 without TF32, as torch
multiplies by default; float64 on tensor cores where there are some. REACHED is assumed, not measured: long products
reach some three fifths of the tensor cores' 16-bit peak, and more of the others, which are easier to feed.
Eigendecompositions reach no constant part of any peak, because half of their work waits for memory; `eigen` is what
cuSOLVER's float64 syevd does at sides of some thousand, by its nominal 9 n³ (svdexp/models/work.py), assumed likewise.
`memory` is what torch reports as the device's total, in bytes.
"""

from dataclasses import dataclass

import torch

from svdexp.estimate.speed import Speed
from svdexp.runtime.errors import require

REACHED = {"half": 0.6, "float32": 0.8, "float64": 0.7, "bandwidth": 0.8}
LAUNCH = 10e-6  # seconds from one small operation to the next, the host's part; assumed


@dataclass(frozen=True)
class Machine:
    """What an estimate is for.

    Attributes:
        name: in words.
        memory: bytes of the memory that the model is in.
        speed: FLOP/s by kind of work.
        known_from: where the speed is from, in words.
        shared: whether Python and its libraries take of the same memory.
    """

    name: str
    memory: float
    speed: Speed
    known_from: str
    shared: bool = False


@dataclass(frozen=True)
class Sheet:
    """Published peaks in FLOP/s, `eigen` as assumed, bytes of memory, and bytes/s that it gives or takes."""

    half: float
    float32: float
    float64: float
    eigen: float
    memory: float
    bandwidth: float


SHEETS = {
    "h100-80gb": Sheet(989e12, 67e12, 67e12, 0.4e12, 84.9e9, 3.35e12),
    "a100-80gb": Sheet(312e12, 19.5e12, 19.5e12, 0.3e12, 84.9e9, 2.04e12),
    "rtx4090": Sheet(165e12, 82.6e12, 1.29e12, 0.1e12, 25.3e9, 1.01e12),
}


def published_machine(name: str, dtype: torch.dtype) -> Machine:
    """The device called `name`, with a model in `dtype`.

    Raises:
        UserError: it is not in the table.
    """
    require(name in SHEETS, f"dry_run.device={name} is not known; choose from {', '.join([*SHEETS, 'this'])}")
    sheet = SHEETS[name]
    reached = {kind: share * getattr(sheet, kind) for kind, share in REACHED.items()}
    model = reached["float32" if dtype is torch.float32 else "half"]
    speed = Speed(model, reached["float32"], reached["float64"], sheet.eigen, reached["bandwidth"], LAUNCH)
    return Machine(name, sheet.memory, speed, "from published peaks, see docs/estimates.md")
