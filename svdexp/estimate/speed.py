"""How fast this device is, from a few blocks, products and eigendecompositions, some two seconds in all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import torch

from svdexp.estimate.probe import BLOCKS, Probe, Rates, launches, reached
from svdexp.factorisation.eigen import eigh
from svdexp.models.work import BLOCK_LAUNCHES, Work, eigh_flops

# Sides of the matrices that are timed: small enough to be quick, large enough to keep the device busy.
PRODUCT = {"cpu": 1024, "cuda": 4096}
EIGEN = {"cpu": 512, "cuda": 2048}
SECONDS, CALLS = 0.1, 5
PATIENCE = 0.2  # seconds for each pass of the blocks, which other work beside it disturbs most
COPIED = 2**26  # bytes


@dataclass(frozen=True)
class Speed:
    """FLOP/s for each kind of `Work`; bytes/s that are read or written, and seconds to start a small operation.

    `backward` is None where it is that of `model`.
    """

    model: float
    float32: float
    float64: float
    eigen: float
    bandwidth: float = 1e12
    launch: float = 0.0
    backward: float | None = None

    def seconds(self, work: Work) -> float:
        """How long `work` takes."""
        kinds = ("model", "float32", "float64", "eigen")
        computing = sum(float(getattr(work, kind)) / float(getattr(self, kind)) for kind in kinds)
        computing += work.backward / (self.backward or self.model)
        return computing + work.moved / self.bandwidth + work.launches * self.launch + work.elapsed


@cache
def measure_speed(device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, int], ...], length: int) -> Speed:
    """The speed of `device` with a model in `dtype`, whose blocks have layers of `shapes`, (m, n) each, and windows
    have `length` tokens; takes about two seconds, once a process: the cells of a sweep share it.

    No matrix larger than the model's is timed: with a tiny model that would take longer than the run.
    """
    widest = max(map(max, shapes))
    wide = product_speed(device, torch.float32, widest), product_speed(device, torch.float64, widest)
    moves = bandwidth(device, dtype)
    block = block_rates(Probe(shapes, device, dtype), length, moves)
    return Speed(block.forward, *wide, eigen_speed(device, widest), moves, block.launch, block.backward)


def block_rates(probe: Probe, length: int, bandwidth: float) -> Rates:
    """From one token, `length` tokens forward, and forward and backward."""
    length = probe.tokens(length)
    states = probe.states(length)
    passes = probe.step, partial(probe.ahead, states), partial(probe.there_and_back, states)
    pair, ahead, both = (_seconds(compute, PATIENCE) for compute in passes)
    counts, starts, weights = probe.counts(length), BLOCKS * BLOCK_LAUNCHES, probe.entries * states.itemsize
    launch = launches(pair / 2, probe.counts(1), weights, counts.forward / ahead, bandwidth)
    rate = reached(counts.forward, ahead, counts.moved, starts, bandwidth, launch)
    behind = max(both - ahead, both / 2)
    return Rates(rate, reached(counts.backward, behind, 2 * counts.moved, 2 * starts, bandwidth, launch), launch)


def product_speed(device: torch.device, dtype: torch.dtype, widest: int | None = None) -> float:
    """FLOP/s of a square matrix product."""
    side = _side(PRODUCT, device, widest)
    A = _random(side).to(device, dtype)
    return 2 * side**3 / _seconds(lambda: A @ A)


def eigen_speed(device: torch.device, widest: int | None = None) -> float:
    """FLOP/s of a symmetric float64 eigendecomposition, at the nominal count of `eigh_flops`."""
    side = _side(EIGEN, device, widest)
    A = _random(side).to(device, torch.float64)
    S = A @ A.T
    return eigh_flops(side) / _seconds(lambda: eigh(S)[1])


def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes/s of a copy that no cache of the processor holds."""
    numbers = torch.zeros(COPIED // dtype.itemsize, 1, dtype=dtype, device=device)
    other = torch.zeros_like(numbers)
    return 2 * COPIED / _seconds(lambda: other.copy_(numbers))


def _side(sides: Mapping[str, int], device: torch.device, widest: int | None) -> int:
    side = sides.get(device.type, sides["cpu"])
    return side if widest is None else min(side, widest)


def _random(side: int) -> torch.Tensor:
    # a generator of its own: the run's random numbers stay those of its seed
    return torch.randn(side, side, generator=torch.Generator().manual_seed(0))


def _seconds(compute: Callable[[], torch.Tensor], patience: float = SECONDS) -> float:
    """The median of CALLS, or of those within `patience` seconds, after one to warm up.

    Reading an entry waits for a call's end.
    """
    compute()[0, 0].item()
    taken: list[float] = []
    end = time.perf_counter() + patience
    while len(taken) < CALLS and (not taken or time.perf_counter() < end):
        start = time.perf_counter()
        compute()[0, 0].item()
        taken.append(time.perf_counter() - start)
    return median(taken)
