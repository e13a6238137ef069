"""`python -m svdexp.bench`: speed as ratios measured in one run, so that they hold on any machine.

Shapes are SmolLM2-135M's and those of a block of hidden size 2048. Each pair is timed in turn, A B A B …, and the
median ratio is printed: above 1 means that svdexp's way is faster.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from svdexp.calibration.statistics import Gram
from svdexp.factorisation import Metric, decompose
from svdexp.models.low_rank import Factors, LowRankLinear

REPEATS = 5
SMALL = [(576, 576), (192, 576), (1536, 576), (576, 1536)]
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


def decomposition(shape: tuple[int, int]) -> float:
    """One weighted decomposition against the textbook route."""
    m, n = shape
    W, x = torch.randn(m, n), torch.randn(4 * n, n)
    C = x.T @ x / len(x)
    rank = m * n // (m + n) * 4 // 5
    return speedup(lambda: decompose(W, Metric(right=C)).truncate(rank), lambda: textbook(W, C, rank))


def second_moment(width: int) -> float:
    """Accumulating C from 2048 tokens against one plain product."""
    x, gram, total = torch.randn(2048, width), Gram(width, torch.device("cpu")), torch.zeros(width, width)
    return speedup(lambda: gram.add(x), lambda: total.addmm_(x.T, x))


def layer(shape: tuple[int, int], kept: float, tokens: int) -> float:
    """The low-rank layer against the dense one."""
    m, n = shape
    rank = int(kept * m * n / (m + n))
    dense = nn.Linear(n, m, bias=False)
    factors = Factors(torch.randn(m, rank), torch.randn(rank, n))
    low = LowRankLinear.from_factors(factors, None, dense.weight)
    x = torch.randn(tokens, n)
    with torch.no_grad():
        return speedup(lambda: low(x), lambda: dense(x))


def main() -> None:
    """Print every ratio."""
    torch.manual_seed(0)
    table = Table(title="speed against the plain way (above 1 is faster)", title_justify="left")
    for heading in ("what", "plain way", "shape", "ratio"):
        table.add_column(heading)
    for shape in SMALL:
        table.add_row("decomposition", "Cholesky + SVD + inverse", f"{shape}", f"{decomposition(shape):.2f}")
    for width in (576, 1536):
        table.add_row("second moment", "one product", f"{width}", f"{second_moment(width):.2f}")
    for shape in WIDE:
        for kept in (0.8, 0.6, 0.4, 0.2):
            for name, tokens in (("prefill 512", 512), ("decode 1", 1)):
                ratio = layer(shape, kept, tokens)
                table.add_row(f"low-rank layer, {name}, kept {kept}", "dense layer", f"{shape}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
