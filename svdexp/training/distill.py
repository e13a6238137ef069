"""Distillation: all factors at once, towards the dense model's distribution over next tokens.

    loss = (1 − λ) T² KL(p_dense ‖ p_student), both softened by T, + λ cross-entropy + μ hidden-state error

The first term is Hinton et al. (arXiv 1503.02531), eq. 4; the last sums, over the blocks, the squared error of the
hidden states as a share of the dense ones' squared norm.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from svdexp.descent.descent import Curve, Descent, Schedule
from svdexp.evaluation.perplexity import perplexity
from svdexp.models.structure import checkpointed_blocks
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require, require_tokens
from svdexp.training.base import Lesson, OwnText
from svdexp.training.cost import descent, stored_descent
from svdexp.training.logit_divergence import divergence
from svdexp.training.student import Student


@dataclass(frozen=True)
class Distill(Schedule, OwnText):
    """Knowledge distillation on the calibration windows, or on more text.

    Attributes:
        text, files, chat, samples, seq_len: as `OwnText`; items are cut from the calibration windows if it is those.
        temperature: T.
        labels: λ, the share of the cross-entropy with the text's own next tokens.
        hidden: μ, the weight of the hidden states.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        stored: train what is stored, after rounding, instead of plain factors before.
    """

    # what is in them counts in identities, not what they are called
    text: str | None = field(default=None, repr=False)
    files: list[str] = field(default_factory=list, repr=False)
    chat: bool = field(default=False, repr=False)
    samples: int | None = field(default=None, repr=False)
    seq_len: int = 512
    temperature: float = 1.0
    labels: float = 0.0
    hidden: float = 0.0
    checkpointing: bool = False
    stored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tokens(f"{self.knob}.seq_len", self.seq_len)
        for key in ("files", "chat", "samples") if self.text is None else ():
            require(not getattr(self, key), f"{self.knob}.{key} has no effect without {self.knob}.text")
        require(0 < self.temperature < math.inf, f"{self.knob}.temperature must be positive, not {self.temperature}")
        require(0 <= self.labels <= 1, f"{self.knob}.labels is a share, from 0 to 1, not {self.labels}")
        require(0 <= self.hidden < math.inf, f"{self.knob}.hidden must not be negative, but is {self.hidden}")

    @property
    def knob(self) -> str:
        """Where these options stand in the configuration."""
        return "method.training.distill"

    def cost(self, workload: Workload) -> Work:
        """The dense model forward, the compressed one forward and backward, on every item.

        All of a text of its own counts as much as calibrates.
        """
        count = self.samples or workload.windows * (workload.length // self.seq_len)
        tokens = self.steps_over(count) * self.batch * self.seq_len
        teacher = workload.forward(tokens / workload.length) if self.needs_teacher else Work()
        if self.stored:
            return stored_descent(workload, tokens, self.seq_len) + teacher
        return descent(workload, tokens, self.seq_len, workload.factor_numbers) + teacher

    def item_length(self, length: int) -> int:
        """Tokens of one item."""
        return self.seq_len

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model's outputs count."""
        return self.labels < 1 or self.hidden > 0

    def __call__(self, lesson: Lesson) -> Curve:
        """Train all layers."""
        student = lesson.student
        windows, held_out = self.split(lesson.windows)
        items = cut(windows, self.seq_len)
        descent = Descent(
            schedule=self,
            parameters=student.learnt(),
            loss=lambda index: self.loss(student, items[index]),
            count=len(items),
            score=lambda: perplexity_of(student, held_out),
            seed=lesson.seed,
            what="distillation",
        )
        return descent.run(lesson.shelf(part=""))

    def loss(self, student: Student, tokens: torch.Tensor) -> torch.Tensor:
        """The loss on one sequence (L,), a scalar."""
        batch = tokens[None].to(student.model.device)
        with student.precision():
            if self.needs_teacher:
                with student.as_teacher() as teacher:
                    wanted = self.run(teacher, batch)
            with checkpointed_blocks(student.model) if self.checkpointing else nullcontext():
                found = self.run(student.model, batch)
        T, logits = self.temperature, found.logits[0, :-1]
        total = torch.zeros((), device=logits.device)
        if self.labels < 1:
            total = total + (1 - self.labels) * T**2 * divergence(logits, wanted.logits[0, :-1], T)
        if self.labels > 0:
            total = total + self.labels * nn.functional.cross_entropy(logits.float(), batch[0, 1:])
        if self.hidden > 0:
            total = total + self.hidden * hidden_error(found.hidden_states, wanted.hidden_states)
        return total

    def run(self, model: Any, batch: torch.Tensor) -> Any:
        """Logits, and the hidden states if they count."""
        return model(batch, use_cache=False, output_hidden_states=self.hidden > 0)


def hidden_error(found: Any, wanted: Any) -> torch.Tensor:
    """Mean over the blocks of ‖h − h_dense‖² / ‖h_dense‖²; the embeddings, which come first, are the same."""
    errors = [
        (h.float() - target.float()).square().sum() / target.float().square().sum()
        for h, target in zip(found[1:], wanted[1:], strict=True)
    ]
    return torch.stack(errors).mean()


def cut(windows: torch.Tensor, length: int) -> torch.Tensor:
    """Windows (N, L) as items of `length` ≤ L tokens; the rest of each window is left out."""
    L = windows.shape[1]
    return windows[:, : L // length * length].reshape(-1, length)


def perplexity_of(student: Student, windows: torch.Tensor) -> float:
    """The student's, on windows (N, L)."""
    with student.precision():
        return perplexity(student.model, windows, None, None).value
