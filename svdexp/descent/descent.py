"""Gradient descent that can be interrupted, and stops where held-out text says so."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from svdexp.descent.gradients import mean_gradient
from svdexp.descent.order import batch_of
from svdexp.runtime.errors import UserError, require, require_positive
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf

log = logging.getLogger(__name__)

# A step may see an item more than once, where a paper's batch meets little text; beyond this it is a mistake.
MOST_PASSES = 100
# Per look at held-out text: the step, the mean loss since the last look, the held-out score.
Curve = list[list[float]]


def joined(curve: Curve, more: Curve) -> Curve:
    """`more` behind `curve`, with its steps counted on."""
    start = curve[-1][0] if curve else 0.0
    return curve + [[start + step, loss, score] for step, loss, score in more]


@dataclass(frozen=True)
class Schedule:
    """The options of every training: AdamW with linear warm-up and cosine decay.

    Attributes:
        steps: of the optimiser; None: as many as `epochs` take.
        epochs: how often every item is seen, where `steps` is None.
        batch: items a step.
        lr: the largest learning rate.
        warmup: the share of steps in which it rises.
        floor: the share of it that is left at the end.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient.
        held_out: the share of the windows that is never learnt from and says when to stop, at least one window.
        check_every: steps from one look at held-out text to the next.
        patience: looks without improvement after which training ends.
    """

    steps: int | None = 60
    epochs: int = 1
    batch: int = 4
    lr: float = 3e-4
    warmup: float = 0.1
    floor: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    held_out: float = 0.06
    check_every: int = 20
    patience: int = 3

    def __post_init__(self) -> None:
        for key in ("steps", "epochs", "batch", "check_every", "patience"):
            if (value := getattr(self, key)) is not None:
                require_positive(f"{self.knob}.{key}", value)
        for key in ("lr", "clip"):
            value = getattr(self, key)
            require(0 < value < math.inf, f"{self.knob}.{key} must be positive, not {value}")
        for key in ("warmup", "floor", "held_out"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"{self.knob}.{key} is a share, from 0 to 1, not {value}")
        decay = self.weight_decay
        require(0 <= decay < math.inf, f"{self.knob}.weight_decay must not be negative, but is {decay}")

    @property
    def knob(self) -> str:
        """Where these options stand in the configuration."""
        return "method.training"

    def split(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows to learn from, and the last ones, which are held out.

        Raises:
            UserError: there is only one window, or all are held out.
        """
        apart = self._apart(len(windows))
        return windows[:-apart], windows[-apart:]

    def _apart(self, count: int) -> int:
        """How many of `count` windows are held out."""
        apart = max(1, round(self.held_out * count))
        require(
            apart < count,
            f"{self.knob}.held_out={self.held_out} of {count} calibration windows leaves none to learn from",
        )
        return apart

    def check(self, count: int, length: int) -> None:
        """Raise UserError where `count` windows of `length` tokens are too few, also for a batch, or too short."""
        apart = self._apart(count)
        item = self.item_length(length)
        require(item <= length, f"{self.knob}.seq_len={item} is longer than calibration.seq_len={length}")
        items = (count - apart) * (length // item)
        require(
            self.batch <= MOST_PASSES * items,
            f"{self.knob}.batch={self.batch} goes over all {items} items more than {MOST_PASSES} times a step",
        )

    def steps_over(self, count: int) -> int:
        """How many steps there are with `count` items."""
        return math.ceil(self.epochs * count / self.batch) if self.steps is None else self.steps

    def tokens(self, curve: Curve, windows: torch.Tensor) -> int:
        """How many tokens the steps of `curve` saw, given `windows` (N, L); what is seen again counts again."""
        return int(curve[-1][0]) * self.batch * self.item_length(windows.shape[1])

    def item_length(self, length: int) -> int:
        """Tokens of one item, by default a window of `length`."""
        return length

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of `step`, counted from 0, of `steps`."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.lr * (step + 1) / rising
        turn = (step - rising) / max(1, steps - rising)
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * turn)) / 2)


@dataclass
class Descent:
    """One training: what is trained, on what, towards what.

    Attributes:
        schedule: its options.
        parameters: what is trained, float32.
        loss: of one item, by its index; a scalar.
        count: how many items there are.
        score: of the parameters as they are, on held-out text; lower is better.
        seed: of the order of the items.
        what: names the progress bar and the log's lines.
    """

    schedule: Schedule
    parameters: Sequence[nn.Parameter]
    loss: Callable[[int], torch.Tensor]
    count: int
    score: Callable[[], float]
    seed: int
    what: str

    def __post_init__(self) -> None:
        self.steps = self.schedule.steps_over(self.count)

    def run(self, shelf: Shelf) -> Curve:
        """Train, and leave the best parameters in place.

        Goes on where an earlier run left its state on `shelf`.

        Returns:
            per look at held-out text: step, mean loss since the last look, score.

        Raises:
            UserError: a loss is not finite.
        """
        options, processes = self.schedule, Processes()
        trained = [parameter.requires_grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.parameters, lr=options.lr, weight_decay=options.weight_decay)
        history, best = self._restore(optimizer, shelf.get("state"))
        losses: list[float] = []
        for step in progress(range(self.steps), self.what):
            start = int(history[-1][0])
            if step < start or self._exhausted(history):
                continue
            losses.append(self._step(step, optimizer, processes))
            if (step + 1) % options.check_every == 0 or step + 1 == self.steps:
                history.append([step + 1.0, sum(losses) / len(losses), self.score()])
                losses = []
                found = history[-1][1:]
                log.info("%s, step %d of %d: loss %.4g, held out %.4g", self.what, step + 1, self.steps, *found)
                if history[-1][2] == min(score for *_, score in history):
                    best = [parameter.detach().clone() for parameter in self.parameters]
                if processes.main:
                    shelf.put("state", self._state(optimizer, history, best))
        for parameter, value, before in zip(self.parameters, best, trained, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None
            parameter.requires_grad_(before)
        return history

    def _exhausted(self, history: Sequence[Sequence[float]]) -> bool:
        """Whether the last looks were all worse than the best."""
        scores = [entry[2] for entry in history]
        return len(scores) - 1 - scores.index(min(scores)) >= self.schedule.patience

    def _step(self, step: int, optimizer: torch.optim.Optimizer, processes: Processes) -> float:
        batch = batch_of(step, self.schedule.batch, self.count, self.seed)
        mean = mean_gradient(self.parameters, batch, self.loss, self.seed, step, processes)
        if not math.isfinite(mean):
            raise UserError(
                f"{self.what}: the loss of step {step + 1} is not finite; try a smaller {self.schedule.knob}.lr, "
                "or precision=float32"
            )
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.rate(step, self.steps)
        optimizer.step()
        return mean

    def _state(
        self, optimizer: torch.optim.Optimizer, history: list[list[float]], best: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        tensors = {"history": torch.tensor(history, dtype=torch.float64)}
        for i, parameter in enumerate(self.parameters):
            moments = optimizer.state[parameter]
            tensors |= {f"{i}/{key}": torch.as_tensor(moments[key]) for key in ("step", "exp_avg", "exp_avg_sq")}
            tensors |= {f"{i}/value": parameter.detach(), f"{i}/best": best[i]}
        return tensors

    def _restore(
        self, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor] | None
    ) -> tuple[list[list[float]], list[torch.Tensor]]:
        """The looks so far, the first before any step, and the best parameters among them."""
        if state is None:
            return [[0.0, math.nan, self.score()]], [parameter.detach().clone() for parameter in self.parameters]
        best = []
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(state[f"{i}/value"])
            moments = {key: state[f"{i}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter) for k, v in moments.items()}
            best.append(state[f"{i}/best"].to(parameter))
        history: list[list[float]] = state["history"].tolist()
        log.info("%s: going on after step %d of %d", self.what, int(history[-1][0]), self.steps)
        return history, best
