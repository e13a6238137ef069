"""Gradient descent on truncation positions: the training behind svdexp/allocation/learned.py."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation.budget import Budget
from svdexp.allocation.curves import RankCurves
from svdexp.allocation.from_gamma import GAMMA_TOKENS
from svdexp.allocation.rank_schedule import RankSchedule
from svdexp.descent.gradients import mean_gradient
from svdexp.descent.order import batch_of
from svdexp.factorisation.activation import changed_outputs, soft_truncate
from svdexp.models.structure import checkpointed_blocks
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf

log = logging.getLogger(__name__)

# The mean of γ over this last share of all steps is the result.
AVERAGED = 0.25


class RankTraining:
    """One run of gradient descent on γ; every step is a function of the state before it and of its number.

    Several processes (accelerate launch, torchrun) share the sequences of each step.
    """

    def __init__(
        self, options: RankSchedule, budget: Budget, model: PreTrainedModel, sequences: torch.Tensor, seed: int
    ) -> None:
        self.options, self.budget, self.model, self.sequences, self.seed = options, budget, model, sequences, seed
        self.names = list(budget.shapes)
        self.sides = torch.tensor([min(shape) for shape in budget.shapes.values()], dtype=torch.float64)
        self.steps = options.steps(len(sequences))
        uniform = torch.tensor([budget.uniform_rank(name) for name in self.names], dtype=torch.float64)
        self.gamma = nn.Parameter(uniform * GAMMA_TOKENS / self.sides)
        self.optimizer = torch.optim.Adam([self.gamma], lr=options.lr)
        self.history: list[list[float]] = []  # per step: perplexity, achieved ratio, then every γ
        self.processes = Processes()

    def run(self, shelf: Shelf) -> torch.Tensor:
        """γ after all steps, (K,) float64; goes on where an earlier run left its state on `shelf`."""
        self.restore(shelf.get("state"))
        for step in progress(range(self.steps), "learning ranks"):
            if step < len(self.history):
                continue
            self.step(step)
            if (step + 1) % self.options.save_every == 0 or step + 1 == self.steps:
                shelf.put("state", self.state())
        last = max(1, round(AVERAGED * self.steps))
        return torch.tensor(self.history, dtype=torch.float64)[-last:, 2:].mean(0)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, and the curves."""
        moments = self.optimizer.state[self.gamma]
        tensors = {key: torch.as_tensor(moments[key]).clone() for key in ("step", "exp_avg", "exp_avg_sq")}
        return tensors | {
            "gamma": self.gamma.detach().clone(),
            "history": torch.tensor(self.history, dtype=torch.float64),
        }

    def curves(self) -> RankCurves:
        """Every step, those of an earlier run that this one went on from included."""
        perplexity, ratio, *gamma = map(list, zip(*self.history, strict=True))
        return RankCurves(perplexity, ratio, dict(zip(self.names, gamma, strict=True)))

    def restore(self, state: dict[str, torch.Tensor] | None) -> None:
        """Continue from `state`, if there is one."""
        if state is None:
            return
        self.history = state["history"].tolist()
        self.gamma.data.copy_(state["gamma"])
        self.optimizer.state[self.gamma] = {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        log.info("learned ranks: going on after step %d of %d", len(self.history), self.steps)

    def step(self, step: int) -> None:
        """One optimiser step on the sequences that belong to it.

        Raises:
            UserError: the loss is not finite.
        """
        options = self.options
        batch = self.batch(step)
        perplexity = self.task_gradient(batch, step)
        if not math.isfinite(perplexity):
            raise UserError(
                f"method.allocation: the loss of step {step + 1} on calibration sequences {batch} is not finite; "
                "try precision=float32 or a smaller method.allocation.lr"
            )
        ratio = self.achieved_ratio()
        penalty = options.penalty_at(self.budget.ratio) * (ratio - self.budget.ratio).abs() + self.range_penalty()
        penalty.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate(step, self.steps)
        self.optimizer.step()
        gamma = self.gamma.detach()
        self.history.append([perplexity, float(ratio.detach()), *gamma.tolist()])
        log.info(
            "learned ranks, step %d of %d: perplexity %.4g, ratio %.4f, γ %.0f to %.0f, mean %.0f",
            *(step + 1, self.steps, perplexity, float(ratio.detach())),
            *(float(gamma.min()), float(gamma.max()), float(gamma.mean())),
        )

    def batch(self, step: int) -> list[int]:
        """The indices of the sequences of `step`."""
        return batch_of(step, self.options.accumulation, len(self.sequences), self.seed, self.options.epochs)

    def task_gradient(self, batch: Sequence[int], step: int) -> float:
        """Sets γ's gradient to that of the mean exp(cross-entropy) over `batch`, and returns that mean."""

        def perplexity(index: int) -> torch.Tensor:
            return torch.exp(self.cross_entropy(self.sequences[index]))

        with self.truncated():
            return mean_gradient([self.gamma], batch, perplexity, self.seed, step, self.processes)

    def truncated(self) -> AbstractContextManager[Any]:
        """Every layer's outputs are truncated at its γ."""
        return changed_outputs(self.model, {name: partial(self.truncate, i) for i, name in enumerate(self.names)})

    def truncate(self, layer: int, X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        """Soft truncation of Y (…, t, m): γ counts singular values of GAMMA_TOKENS, of which Y has fewer or more."""
        available = min(*Y.shape[-2:], X.shape[-1])
        rank = self.gamma[layer].to(Y.device) * (available / GAMMA_TOKENS)
        return soft_truncate(Y, rank, self.options.sharpness, self.options.randomised)

    def cross_entropy(self, sequence: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss of one sequence (L,), at least in float32."""
        tokens = sequence[None].to(self.model.device)
        model: Any = self.model
        with torch.enable_grad(), checkpointed_blocks(model) if self.options.checkpointing else nullcontext():
            logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
            wide = torch.promote_types(logits.dtype, torch.float32)
            return nn.functional.cross_entropy(logits.to(wide), tokens[:, 1:].flatten()).cpu()

    def achieved_ratio(self) -> torch.Tensor:
        """What the ranks of γ would keep, a scalar; differentiable, linear between whole ranks."""
        ranks = self.gamma * self.sides / GAMMA_TOKENS
        costs = [
            cost_at(partial(self.budget.bits, name), rank, int(side))
            for name, rank, side in zip(self.names, ranks, self.sides, strict=True)
        ]
        return torch.stack(costs).sum() / sum(map(self.budget.dense, self.names))

    def range_penalty(self) -> torch.Tensor:
        """Zero while every γ is between 0 and GAMMA_TOKENS."""
        return (torch.relu(-self.gamma).square() + torch.relu(self.gamma - GAMMA_TOKENS).square()).sum()


def cost_at(bits: Callable[[int], int], rank: torch.Tensor, largest: int) -> torch.Tensor:
    """Bits of a real-valued rank (scalar), by linear interpolation between whole ranks up to `largest`."""
    below = min(max(math.floor(float(rank.detach())), 0), largest - 1)
    lower = bits(below) if below else 0
    return lower + (bits(below + 1) - lower) * (rank - below)
