"""What every training can do."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

from svdexp.data.reads import described
from svdexp.descent.descent import Curve
from svdexp.runtime.shelves import Shelf, fingerprint
from svdexp.training.student import Student

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What a training has to work with.

    Attributes:
        student: the compressed model, what is trained float32.
        windows: token ids to learn from, (N, L).
        shelf: `shelf(part=…)` is where a training leaves the state of one of its parts.
        seed: of what is drawn at random.
    """

    student: Student
    windows: torch.Tensor
    shelf: Callable[..., Shelf]
    seed: int


class Training(Protocol):
    """Changes the factors of a compressed model, or what is stored of them, by gradient descent; their shapes stay."""

    def __call__(self, lesson: Lesson) -> Curve:
        """Train in place."""

    def check(self, count: int, length: int) -> None:
        """Raise UserError where `count` windows of `length` tokens are too few or too short."""

    def tokens(self, curve: Curve, windows: torch.Tensor) -> int:
        """How many tokens the steps of `curve` saw, given `windows` (N, L); what is seen again counts again."""


class Trained(NamedTuple):
    """What became of a training: its curve, and how many tokens it saw."""

    curve: Curve
    tokens: int


def learns_stored(training: Training) -> bool:
    """Whether it trains what is stored, after rounding; one that has no option `stored` trains plain factors."""
    return getattr(training, "stored", False)


def teach(
    student: Student,
    trainings: Mapping[str, Training],
    windows: torch.Tensor,
    texts: Mapping[str, torch.Tensor],
    shelf: Callable[..., Shelf],
    seed: int,
) -> dict[str, Trained]:
    """All trainings, one after the other, on the calibration `windows` (N, L), or on their own of `texts`.

    `shelf(**ingredients)` is where an interrupted training finds its state; a training's depends on those before it.
    """
    if not student.learnt():
        log.warning("method.training: no matrix was factorised, so there is nothing to train")
        return {}
    found: dict[str, Trained] = {}
    done: list[str] = []
    for name, training in trainings.items():
        done.append(described(training))
        own = texts.get(name, windows)
        part = partial(shelf, trainings=list(done), text=fingerprint({"": own}))
        lesson = Lesson(student, own, part, seed)
        curve = training(lesson)
        found[name] = Trained(curve, training.tokens(curve, own))
    return found
