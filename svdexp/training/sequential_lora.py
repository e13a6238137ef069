"""SVD-LLM's second half (arXiv 2403.07378, section 3.3): adapters on one factor of every layer, then on the other.

LoRA on every A with all B frozen, merged; then LoRA on every B, merged. The loss is the cross-entropy of the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from svdexp.descent.descent import Curve, Descent, Schedule, joined
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require, require_positive, require_tokens
from svdexp.training.base import Lesson, OwnText
from svdexp.training.cost import descent
from svdexp.training.distill import cut, perplexity_of
from svdexp.training.student import Student

# The factors that get adapters, round by round; their names are those of LowRankLinear's children.
ROUNDS: dict[bool, list[tuple[str, ...]]] = {True: [("rank_out",), ("rank_in",)], False: [("rank_out", "rank_in")]}

# Of 256 tokens in alpaca-cleaned: 51,760 rows of about 120 tokens.
ALPACA_ITEMS = 24_000


@dataclass(frozen=True)
class SequentialLora(Schedule, OwnText):
    """Adapters by peft; an item is `seq_len` tokens of the text, rows one after the other.

    Attributes:
        text, files, chat, samples, seq_len: as `OwnText`.
        r, alpha, dropout: of the adapters: W + (alpha / r) D E with D (m, r).
        sequential: one factor after the other; False is both at once.
    """

    steps: int | None = None
    epochs: int = 2
    batch: int = 64
    lr: float = 1e-4
    text: str | None = "alpaca"
    files: list[str] = field(default_factory=list)
    chat: bool = False
    samples: int | None = None
    seq_len: int = 256
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    sequential: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tokens(f"{self.knob}.seq_len", self.seq_len)
        for key in ("r", "alpha"):
            require_positive(f"{self.knob}.{key}", getattr(self, key))
        require(0 <= self.dropout < 1, f"{self.knob}.dropout is a share below 1, not {self.dropout}")

    @property
    def knob(self) -> str:
        """Where these options stand in the configuration."""
        return "method.training.sequential_lora"

    def cost(self, workload: Workload) -> Work:
        """Every round forward and backward; of a text of its own all rows count as those of alpaca-cleaned."""
        known = workload.tokens if self.text is None else (self.samples or ALPACA_ITEMS) * self.seq_len
        tokens = self.steps_over(known // self.seq_len) * self.batch * self.seq_len
        adapters = sum(self.r * (layer.m + workload.rank(layer)) for layer in workload.layers)
        return descent(workload, tokens, self.seq_len, adapters) * len(ROUNDS[self.sequential])

    def item_length(self, length: int) -> int:
        """Tokens of one item."""
        return self.seq_len

    def __call__(self, lesson: Lesson) -> Curve:
        """Train and merge round by round; the curve runs through both."""
        curve: Curve = []
        for factors in ROUNDS[self.sequential]:
            curve = joined(curve, self.train(factors, lesson))
        return curve

    def train(self, factors: Sequence[str], lesson: Lesson) -> Curve:
        """One round: adapters on these factors of every layer."""
        from peft import LoraConfig, get_peft_model  # takes seconds, and only this training needs it

        student = lesson.student
        windows, held_out = self.split(lesson.windows)
        items = cut(windows, self.seq_len)
        names = [f"{name}.{factor}" for name in student.layers for factor in factors]
        options = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names)
        with torch.random.fork_rng():
            torch.manual_seed(lesson.seed)  # of the adapters' start
            adapted: Any = get_peft_model(student.model, options)
        descent = Descent(
            schedule=self,
            parameters=[parameter for key, parameter in adapted.named_parameters() if "lora_" in key],
            loss=lambda index: with_dropout(adapted, cross_entropy, student, items[index]),
            count=len(items),
            score=lambda: perplexity_of(student, held_out),
            seed=lesson.seed,
            what=f"adapters on {' and '.join(factors)}",
        )
        curve = descent.run(lesson.shelf(part="+".join(factors)))
        adapted.merge_and_unload()
        return curve


def with_dropout(adapted: nn.Module, work: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """What `work` gives with the adapters' dropout on; the model's own stays off."""
    from peft.tuners.lora import LoraLayer

    drops = [module.lora_dropout for module in adapted.modules() if isinstance(module, LoraLayer)]
    for drop in drops:
        drop.train()
    try:
        return work(*args)
    finally:
        for drop in drops:
            drop.eval()


def cross_entropy(student: Student, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of the student on one sequence (L,), a scalar."""
    batch = tokens[None].to(student.model.device)
    with student.precision():
        logits = student.model(batch, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0, :-1].float(), batch[0, 1:])
