"""Command line: `python -m svdexp.bench.shapes` prints decompositions at Llama-2-7B's shapes against the textbook.

Two-sided: the textbook factorises C and G by Cholesky, takes a full SVD and inverts both factors, all in float64. Ours
gets what calibration leaves of the same C and G, in float32. Words are shapes, such as 4096x11008; by default all.
"""

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from svdexp.factorisation import Metric, TwoSided, decompose, needs_of
from svdexp.runtime.interruption import interruptible

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]
# Of the least loss: where excess is measured, as shares of the rank that takes as many numbers as W.
KEPT = (0.2, 0.5, 0.8)


class Problem(NamedTuple):
    """W (m, n), G (m, m) and C (n, n) in float32."""

    W: torch.Tensor
    G: torch.Tensor
    C: torch.Tensor


class Found(NamedTuple):
    """Seconds of the clock, seconds of all cores, and of each of the ranks A and B."""

    seconds: float
    cpu: float
    factors: dict[int, tuple[torch.Tensor, torch.Tensor]]


def moment(width: int) -> torch.Tensor:
    """As activations leave it: a few channels are hundreds of times larger than others, and there are tokens enough.

    Of fewer than it is wide, what is lost at ranks beyond their number is less than float32 sums can tell.
    """
    scales = torch.logspace(0, -3, width)[torch.randperm(width)]
    scales[:3] *= 300
    x = torch.randn(2 * width, width) * scales
    return x.T @ x / len(x)


def problem(m: int, n: int) -> Problem:
    """A random one."""
    return Problem(torch.randn(m, n) / n**0.5, moment(m), moment(n))


def ranks_of(m: int, n: int) -> list[int]:
    """Where factors take the shares KEPT of W."""
    return [int(kept * m * n / (m + n)) for kept in KEPT]


def textbook(given: Problem) -> tuple[Found, torch.Tensor]:
    """As one would write the optimum down; with its singular values."""
    start, cpu = time.perf_counter(), time.process_time()
    L, R = torch.linalg.cholesky(given.G.double()).mT, torch.linalg.cholesky(given.C.double())
    U, sigma, Vh = torch.linalg.svd(L @ given.W.double() @ R, full_matrices=False)
    root = sigma.sqrt()
    A, B = torch.linalg.inv(L) @ (U * root), (root[:, None] * Vh) @ torch.linalg.inv(R)
    spent = time.perf_counter() - start, time.process_time() - cpu
    return Found(*spent, {rank: (A[:, :rank], B[:rank]) for rank in ranks_of(*given.W.shape)}), sigma


def ours(given: Problem) -> Found:
    """From what calibration leaves, which is made here."""
    W, (m, n) = given.W.double(), given.W.shape
    needs = needs_of(TwoSided(), m, n)
    moments = {
        "gram": lambda: given.C,
        "grad_gram": lambda: given.G,
        "output_gram": lambda: (W @ given.C.double() @ W.mT).float(),
        "input_grad_gram": lambda: (W.mT @ given.G.double() @ W).float(),
    }
    metric: Metric = TwoSided()({need: moments[need]() for need in needs})
    start, cpu = time.perf_counter(), time.process_time()
    part = decompose(given.W, metric)
    spent = time.perf_counter() - start, time.process_time() - cpu
    factors = {rank: part.truncate(rank) for rank in ranks_of(m, n)}
    return Found(*spent, {rank: (pair.A, pair.B) for rank, pair in factors.items()})


def excess(given: Problem, found: Found, sigma: torch.Tensor) -> float:
    """The largest relative excess of ‖L (W − A B) R‖² over the optimum, at any of the ranks."""
    L, R = torch.linalg.cholesky(given.G.double()).mT, torch.linalg.cholesky(given.C.double())
    worst = 0.0
    for rank, (A, B) in found.factors.items():
        loss = (L @ (given.W.double() - A.double() @ B.double()) @ R).square().sum()
        worst = max(worst, float(loss / sigma[rank:].square().sum()) - 1)
    return worst


def main(words: Sequence[str] | None = None) -> int:
    """Print a line a shape."""
    asked = sys.argv[1:] if words is None else words
    shapes = [tuple(map(int, word.split("x"))) for word in asked] or SHAPES
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads; excess is of the loss, over the textbook's")
    for m, n in shapes:
        given = problem(m, n)
        mine = ours(given)
        print(f"({m}, {n})  ours {mine.seconds:.1f} s, {mine.cpu:.1f} of CPU", flush=True)
        plain, sigma = textbook(given)
        print(f"  textbook {plain.seconds:.1f} s, {plain.cpu:.1f} of CPU: {plain.cpu / mine.cpu:.2f} x", flush=True)
        print(f"  excess {excess(given, mine, sigma):.2e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
