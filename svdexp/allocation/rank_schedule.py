"""How the training of ranks goes: the options of svdexp/allocation/learned.py, and what follows from them alone."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from svdexp.allocation.budget import Aligned
from svdexp.runtime.errors import require, require_positive, require_tokens


@dataclass(frozen=True)
class RankSchedule(Aligned):
    """Options, and the sequences, steps, rates and penalties that they come to.

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

    def sequences(self, windows: torch.Tensor) -> torch.Tensor:
        """The calibration windows (N, L) as training sequences (M, seq_len).

        Raises:
            UserError: the windows are shorter.
        """
        windows = windows[: self.windows]
        self.check(*windows.shape)
        length = self.seq_len or windows.shape[1]
        per_window = windows.shape[1] // length
        return windows[:, : per_window * length].reshape(-1, length)

    def check(self, count: int, length: int) -> None:
        """Raise UserError where windows of `length` tokens are shorter than a sequence; any `count` of them will do."""
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
