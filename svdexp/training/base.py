"""What every training can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from svdexp.cache import Shelf, fingerprint
from svdexp.training.descent import Curve
from svdexp.training.student import Student


@dataclass(frozen=True)
class Lesson:
    """What a training has to work with.

    Attributes:
        student: the compressed model, its factors float32.
        windows: token ids to learn from, (N, L).
        shelf: `shelf(part=…)` is where a training leaves the state of one of its parts.
        seed: of what is drawn at random.
    """

    student: Student
    windows: torch.Tensor
    shelf: Callable[..., Shelf]
    seed: int


class Training(Protocol):
    """Changes the factors of a compressed model by gradient descent; their shapes stay."""

    def __call__(self, lesson: Lesson) -> Curve:
        """Train in place."""


def teach(
    student: Student,
    trainings: Mapping[str, Training],
    windows: torch.Tensor,
    texts: Mapping[str, torch.Tensor],
    shelf: Callable[..., Shelf],
    seed: int,
) -> dict[str, Curve]:
    """All trainings, one after the other, on the calibration `windows` (N, L), or on their own of `texts`.

    `shelf(**ingredients)` is where an interrupted training finds its state; a training's depends on those before it.
    """
    curves: dict[str, Curve] = {}
    done: list[str] = []
    for name, training in trainings.items():
        done.append(repr(training))
        own = texts.get(name, windows)
        part = partial(shelf, trainings=list(done), text=fingerprint({"": own}))
        lesson = Lesson(student, own, part, seed)
        curves[name] = training(lesson)
    return curves
