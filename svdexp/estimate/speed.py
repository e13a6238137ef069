"""How fast this device is, from products and eigendecompositions that take a fraction of a second."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from svdexp.models.work import Work, eigh_flops

# Sides of the matrices that are timed: small enough to be quick, large enough to keep the device busy.
PRODUCT = {"cpu": 1024, "cuda": 4096}
EIGEN = {"cpu": 512, "cuda": 2048}
SECONDS, CALLS = 0.1, 10
COPIED = 2**26  # bytes
LAUNCHES = 100


@dataclass(frozen=True)
class Speed:
    """FLOP/s for each kind of `Work`; bytes/s that are read or written, and seconds to start a small operation."""

    model: float
    float32: float
    float64: float
    eigen: float
    bandwidth: float = 1e12
    launch: float = 0.0

    def seconds(self, work: Work) -> float:
        """How long `work` takes."""
        kinds = ("model", "float32", "float64", "eigen")
        computing = sum(float(getattr(work, kind)) / float(getattr(self, kind)) for kind in kinds)
        return computing + work.moved / self.bandwidth + work.launches * self.launch


def measure_speed(device: torch.device, dtype: torch.dtype, widest: int | None = None) -> Speed:
    """The speed of `device` with a model in `dtype`; takes about half a second.

    No matrix larger than `widest` is timed: with a tiny model that would take longer than the run.
    """
    products = {kind: product_speed(device, kind, widest) for kind in {dtype, torch.float32, torch.float64}}
    kinds = products[dtype], products[torch.float32], products[torch.float64], eigen_speed(device, widest)
    return Speed(*kinds, bandwidth(device, dtype), launch_seconds(device))


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
    return eigh_flops(side) / _seconds(lambda: torch.linalg.eigh(S).eigenvectors)


def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes/s of a copy that no cache of the processor holds."""
    numbers = torch.zeros(COPIED // dtype.itemsize, 1, dtype=dtype, device=device)
    other = torch.zeros_like(numbers)
    return 2 * COPIED / _seconds(lambda: other.copy_(numbers))


def launch_seconds(device: torch.device) -> float:
    """How long it takes to start an operation, from many small ones in a row."""
    small = torch.ones(8, 8, device=device)

    def compute() -> torch.Tensor:
        found = small
        for _ in range(LAUNCHES):
            found = found + small
        return found

    return _seconds(compute) / LAUNCHES


def _side(sides: Mapping[str, int], device: torch.device, widest: int | None) -> int:
    side = sides.get(device.type, sides["cpu"])
    return side if widest is None else min(side, widest)


def _random(side: int) -> torch.Tensor:
    # a generator of its own: the run's random numbers stay those of its seed
    return torch.randn(side, side, generator=torch.Generator().manual_seed(0))


def _seconds(compute: Callable[[], torch.Tensor]) -> float:
    """Of the fastest of CALLS, or of those within SECONDS, after one to warm up; reading an entry waits for its end."""
    compute()[0, 0].item()
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    for _ in range(CALLS):
        start = time.perf_counter()
        compute()[0, 0].item()
        fastest = min(fastest, time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return fastest
