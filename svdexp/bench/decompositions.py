"""Calibration and decomposition against the textbook, and the work of six ratios against that of one."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from svdexp.allocation import GlobalLoss
from svdexp.bench.stacks import SMALL, random_model
from svdexp.bench.timing import Row, speedup
from svdexp.calibration.statistics import Gram
from svdexp.engine.compress import compress
from svdexp.engine.losses import alike, whole_losses
from svdexp.factorisation import Metric, TwoSided, decompose
from svdexp.factorisation.loss import energy
from svdexp.method import Method
from svdexp.runtime.clock import StageClock
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage
from svdexp.storage.forms import form_of

# q, o, k, v, gate, up, down of SmolLM2-135M
BLOCK = [(576, 576), (576, 576), (192, 576), (192, 576), (1536, 576), (1536, 576), (576, 1536)]
# as conf/storage/forms.yaml names them
CODES = [*(f"gptq{bits}-g128-zp" + ("-fit" if bits < 5 else "") for bits in (2, 3, 4, 5, 6, 8)), "dense"]
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def textbook(W: torch.Tensor, C: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """SVD-LLM as published: Cholesky factor, full SVD, inverse."""
    S = torch.linalg.cholesky(C.double())
    U, sigma, Vh = torch.linalg.svd(W.double() @ S, full_matrices=False)
    root = sigma[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * (Vh[:rank] @ torch.linalg.inv(S))


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


def losses_of_forms() -> float:
    """What the matrices of a block lose in each of the forms of storage=forms, against their decompositions."""
    inputs = {"qkv": moment(576), "o": moment(576), "mlp": moment(576), "down": moment(1536)}
    fed = ["qkv", "o", "qkv", "qkv", "mlp", "mlp", "down"]
    weights = {str(i): torch.randn(shape) for i, shape in enumerate(BLOCK)}
    metrics = {str(i): Metric(moment(m), inputs[fed[i]]) for i, (m, _) in enumerate(BLOCK)}
    forms = {word: form_of(word, 1) for word in CODES}

    def losses() -> None:
        for names in alike(metrics):
            whole_losses({name: weights[name] for name in names}, metrics, forms)
        for name, W in weights.items():
            energy(W, metrics[name])

    return speedup(losses, lambda: [decompose(W, metrics[name]) for name, W in weights.items()])


def moment(width: int) -> torch.Tensor:
    """Of inputs whose channels differ in size."""
    x = torch.randn(2 * width, width) * torch.logspace(0, -2, width)
    return x.T @ x / len(x)


def second_moment(width: int) -> float:
    """Accumulating C from 2048 tokens against one plain product."""
    x, gram, total = torch.randn(2048, width), Gram(width, torch.device("cpu")), torch.zeros(width, width)
    return speedup(lambda: gram.add(x), lambda: total.addmm_(x.T, x))


def sharing() -> float:
    """Calibration and decomposition for one ratio against those for six that share a cache."""
    method = Method("kron", TwoSided(), GlobalLoss(), FactorStorage())
    windows = torch.randint(SMALL.vocab_size, (8, 512))
    model = random_model(SMALL)

    clock = StageClock()
    passed = []
    with TemporaryDirectory() as folder:
        for ratio in RATIOS:
            # a copy, because compress works in place
            compress(deepcopy(model), windows, method, ratio, cache=Cache(Path(folder)), clock=clock)
            passed.append(clock.seconds["calibration"] + clock.seconds["factorisation"])
    return passed[0] / passed[-1]


def rows() -> Iterator[Row]:
    """Every comparison."""
    for shape in sorted(set(BLOCK)):
        yield Row("decomposition", "Cholesky + SVD + inverse", f"{shape}", decomposition([shape]))
    yield Row("decomposition", "Cholesky + SVD + inverse", "one block of SmolLM2", decomposition(BLOCK))
    yield Row("losses of seven forms", "decompositions", "one block of SmolLM2", losses_of_forms())
    for width in (576, 1536):
        yield Row("second moment", "one product", f"{width}", second_moment(width))
    yield Row("calibration + decomposition, six ratios", "one ratio", "four blocks of SmolLM2's shape", sharing())
