"""Learned ranks: Dobi-SVD's differentiable truncation positions (arXiv 2502.02723, §3.1).

Every matrix has one trainable number γ, in singular values of a sequence of GAMMA_TOKENS tokens. While it trains, the
layer's output activations are truncated softly at γ (svdexp/factorisation/activation.py); afterwards the matrix gets
the rank γ · min(m, n) / GAMMA_TOKENS. Weights do not train. The loss is

    exp(cross-entropy) + λ |achieved ratio − ratio| + Σ relu(−γ)² + relu(γ − GAMMA_TOKENS)²

minimised with Adam, whose learning rate falls from `lr` to `lr_end` on a cosine.

Ours: γ means the same share of the spectrum for any sequence length and layer shape, where the reference divides by
zero for layers narrower than a sequence; the achieved ratio is the storage's, not a formula; the result is the mean of
γ over the last steps, where the reference takes the ranks that were best on one batch; and those are scaled to meet
the ratio, which the penalty alone misses.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import torch

from svdexp.allocation.budget import Aligned, Budget, Evidence, Ranks
from svdexp.allocation.from_gamma import wanted_rank
from svdexp.allocation.rank_training import Training
from svdexp.estimate.work import Work, Workload, eigh_flops, svd_flops
from svdexp.schema import require, require_positive, require_tokens

# Stands in for a γ that training made negative: such a layer gets the lowest rank.
TINY = 1e-6


@dataclass(frozen=True)
class Learned(Aligned):
    """Train γ on calibration windows.

    Attributes:
        epochs: how often each window is seen.
        accumulation: sequences per step.
        windows: how many calibration windows train; None takes all.
        seq_len: windows are cut to sequences of this length; None leaves them as they are.
        sharpness: β of the gate; 10 in the paper, where one singular value at a time passes a gradient.
        penalty: λ by kept ratio, interpolated between them.
        lr, lr_end: Adam's learning rate at the first and last step, in units of γ.
        randomised: the paper's randomised SVD; False computes every SVD exactly, faster on a CPU.
        checkpointing: recompute a block's activations in the backward pass: less memory, a third more time.
        save_every: steps between two saved states, from which an interrupted training goes on.
    """

    epochs: int = 20
    accumulation: int = 8
    windows: int | None = None
    seq_len: int | None = None
    sharpness: float = 10.0
    penalty: dict[float, float] = field(default_factory=lambda: {0.4: 400.0, 0.6: 200.0, 0.8: 150.0})
    lr: float = 5.0
    lr_end: float = 4.0
    randomised: bool = True
    checkpointing: bool = False
    save_every: int = 5
    needs_spectra: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "accumulation", "save_every"):
            require_positive(f"method.allocation.{name}", getattr(self, name))
        if self.windows is not None:
            require_positive("method.allocation.windows", self.windows)
        if self.seq_len is not None:
            require_tokens("method.allocation.seq_len", self.seq_len)
        for name in ("sharpness", "lr", "lr_end"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"method.allocation.{name} must be positive, not {value:g}")
        require(
            bool(self.penalty) and all(0 < ratio <= 1 and weight >= 0 for ratio, weight in self.penalty.items()),
            f"method.allocation.penalty maps kept ratios to weights of at least 0, not {dict(self.penalty)}",
        )

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """From the loss of the softly truncated model."""
        budget = budget.aligned(self.rank_align)
        training = Training(self, budget, evidence.model, self.sequences(evidence.windows), evidence.seed)
        about = {"options": asdict(self), "seed": evidence.seed, "storage": repr(budget.storage)}
        shelf = evidence.shelf("learned_ranks", ratio=budget.ratio, layers=list(budget.shapes), **about)
        gamma = training.run(shelf)
        evidence.publish(training.curves())
        found = zip(gamma.clamp_min(TINY).tolist(), budget.shapes.items(), strict=True)
        return budget.fit({name: wanted_rank(value, *shape) for value, (name, shape) in found})

    def cost(self, workload: Workload) -> Work:
        """Per sequence one pass forward and backward, an SVD of every layer's outputs, and its gradient."""
        length = min(self.seq_len or workload.length, workload.length)
        windows = min(self.windows or workload.windows, workload.windows)
        passes, share = self.epochs * windows * (workload.length // length), length / workload.length
        alone = workload.forward_backward(1)
        work = Work(model=alone.model * share, bytes=alone.bytes * share)
        for layer in workload.layers:
            side = min(length, layer.m)
            q = workload.rank(layer) * side / min(layer.m, layer.n)
            svd = 10 * (length + layer.m) * q**2 + svd_flops(q, layer.m) if self.randomised else eigh_flops(side)
            kept = 4 * (length * layer.m + q * (length + layer.m))
            work = Work(work.model, work.float32 + 20 * length * layer.m * q, 0, work.eigen + svd, work.bytes + kept)
        return work * passes

    def sequences(self, windows: torch.Tensor) -> torch.Tensor:
        """The calibration windows (N, L) as training sequences (M, seq_len).

        Raises:
            UserError: the windows are shorter.
        """
        windows = windows[: self.windows]
        self.check(windows.shape[1])
        length = self.seq_len or windows.shape[1]
        per_window = windows.shape[1] // length
        return windows[:, : per_window * length].reshape(-1, length)

    def check(self, length: int) -> None:
        """Raise UserError where windows of `length` tokens are shorter than a sequence."""
        wanted = self.seq_len or length
        require(wanted <= length, f"method.allocation.seq_len={wanted} is longer than calibration.seq_len={length}")

    def steps(self, sequences: int) -> int:
        """How many optimiser steps there are; the last one may see fewer sequences than the others."""
        return math.ceil(self.epochs * sequences / self.accumulation)

    def learning_rate(self, step: int, steps: int) -> float:
        """At `step`, counted from 0."""
        share = step / max(steps - 1, 1)
        return self.lr_end + 0.5 * (self.lr - self.lr_end) * (1 + math.cos(math.pi * share))

    def penalty_at(self, ratio: float) -> float:
        """λ."""
        ratios = sorted(self.penalty)
        return float(np.interp(ratio, ratios, [self.penalty[ratio] for ratio in ratios]))
