"""A step of distillation against what it cannot do without: both models forward, the compressed one backward."""

from collections.abc import Iterator

import torch
from torch import nn

from svdexp.bench.stacks import DEMO, compressed, random_model
from svdexp.bench.timing import Row, speedup
from svdexp.descent.gradients import mean_gradient
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.processes import Processes
from svdexp.training import Distill, Student

KEPT, TOKENS = 0.6, 512


def distillation() -> float:
    """One optimiser step on one item of TOKENS tokens, in SmolLM2-135M's shape."""
    model, teacher, options = compressed(DEMO, "factors", KEPT), random_model(DEMO), Distill(batch=1, seq_len=TOKENS)
    dense = {matrix: matrix.layer(teacher) for matrix in find_matrices(teacher, Targets())}
    student = Student(model, dense)
    factors, items = student.learnt(), torch.randint(DEMO.vocab_size, (1, TOKENS))
    for factor in factors:
        factor.requires_grad_(True)
    optimizer = torch.optim.AdamW(factors, lr=options.lr)

    def ours() -> None:
        mean_gradient(factors, [0], lambda index: options.loss(student, items[index]), 0, 0, Processes())
        nn.utils.clip_grad_norm_(factors, options.clip)
        optimizer.step()

    def bare() -> None:
        with torch.no_grad():
            teacher(items, use_cache=False)
        model(items, use_cache=False).logits.sum().backward()

    return speedup(ours, bare)


def rows() -> Iterator[Row]:
    """Every comparison."""
    yield Row("a step of distillation", "both forward, one backward", "SmolLM2-135M's shape, kept 0.6", distillation())
