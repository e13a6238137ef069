"""`python -m svdexp.bench`: speed as ratios measured in one run, so that they hold on any machine.

Shapes are SmolLM2-135M's and those of a block of hidden size 2048. Each pair is timed in turn, A B A B …, and the
median ratio is printed: above 1 means that svdexp's way is faster.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from svdexp.allocation import Budget
from svdexp.calibration.statistics import Gram
from svdexp.factorisation import Metric, decompose
from svdexp.models.portable.svdexp_layers import LowRankLinear, RemapLinear, pivot_layer
from svdexp.storage import (
    NUMBER_BITS,
    FactorStorage,
    PivotStorage,
    RemapStorage,
    Storage,
)

REPEATS = 5
# q, o, k, v, gate, up, down of SmolLM2-135M
BLOCK = [(576, 576), (576, 576), (192, 576), (192, 576), (1536, 576), (1536, 576), (576, 1536)]
WIDE = [(2048, 2048), (5632, 2048), (2048, 5632)]


def textbook(W: torch.Tensor, C: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """SVD-LLM as published: Cholesky factor, full SVD, inverse."""
    S = torch.linalg.cholesky(C.double())
    U, sigma, Vh = torch.linalg.svd(W.double() @ S, full_matrices=False)
    root = sigma[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * (Vh[:rank] @ torch.linalg.inv(S))


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speedup(ours: Callable[[], object], other: Callable[[], object]) -> float:
    """Median of `other` / `ours` over alternating pairs, after one warm-up of each."""
    ours(), other()
    return median(seconds(other) / seconds(ours) for _ in range(REPEATS))


def decomposition(shapes: Sequence[tuple[int, int]]) -> float:
    """Weighted decompositions of matrices of all `shapes` against the textbook route."""
    problems = []
    for m, n in shapes:
        x = torch.randn(4 * n, n)
        problems.append((torch.randn(m, n), x.T @ x / len(x), m * n // (m + n) * 4 // 5))
    return speedup(
        lambda: [decompose(W, Metric(right=C)).truncate(rank) for W, C, rank in problems],
        lambda: [textbook(W, C, rank) for W, C, rank in problems],
    )


def second_moment(width: int) -> float:
    """Accumulating C from 2048 tokens against one plain product."""
    x, gram, total = torch.randn(2048, width), Gram(width, torch.device("cpu")), torch.zeros(width, width)
    return speedup(lambda: gram.add(x), lambda: total.addmm_(x.T, x))


def layers(shape: tuple[int, int], kept: float) -> dict[str, nn.Module]:
    """The dense layer, and one of each storage that takes `kept` of its bits."""
    m, n = shape

    def rank(storage: Storage) -> int:
        return Budget(kept, {"": shape}, storage).largest_rank("", kept * m * n * NUMBER_BITS) or 0

    pivot = pivot_layer(n, rank(PivotStorage()), m, bias=False)
    pivot.order.copy_(torch.randperm(len(pivot.order)))
    factors = LowRankLinear(n, rank(FactorStorage()), m, bias=False)
    remap = RemapLinear(n, rank(RemapStorage()), m, bias=False)
    return {"dense": nn.Linear(n, m, bias=False), "factors": factors, "pivot": pivot, "remap": remap}


def rows() -> Iterator[tuple[str, str, str, float]]:
    """What was timed, against which plain way, on which shape, and the ratio."""
    for shape in sorted(set(BLOCK)):
        yield "decomposition", "Cholesky + SVD + inverse", f"{shape}", decomposition([shape])
    yield "decomposition", "Cholesky + SVD + inverse", "one block of SmolLM2", decomposition(BLOCK)
    for width in (576, 1536):
        yield "second moment", "one product", f"{width}", second_moment(width)
    for shape in WIDE:
        for kept in (0.8, 0.6, 0.4, 0.2):
            made = layers(shape, kept)
            for what, tokens in (("prefill 512", 512), ("decode 1", 1)):
                x = torch.randn(tokens, shape[1])
                for name in ("factors", "pivot", "remap"):
                    with torch.no_grad():
                        ratio = speedup(partial(made[name], x), partial(made["dense"], x))
                    yield f"{name}, {what}, kept {kept}", "dense layer", f"{shape}", ratio


def main() -> None:
    """Print every ratio."""
    torch.manual_seed(0)
    table = Table(title="speed against the plain way (above 1 is faster)", title_justify="left")
    for heading in ("what", "plain way", "shape", "ratio"):
        table.add_column(heading)
    for what, plain, shape, ratio in rows():
        table.add_row(what, plain, shape, f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
