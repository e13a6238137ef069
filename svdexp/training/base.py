"""What every training can do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from svdexp.cache import Shelf
from svdexp.training.student import Student


@dataclass(frozen=True)
class Lesson:
    """What a training has to work with.

    Attributes:
        student: the compressed model, its factors float32.
        windows: calibration token ids, (N, L).
        shelf: where the training called by name leaves its state.
        seed: of what is drawn at random.
    """

    student: Student
    windows: torch.Tensor
    shelf: Callable[[str], Shelf]
    seed: int


class Training(Protocol):
    """Changes the factors of a compressed model by gradient descent; their shapes stay."""

    def __call__(self, lesson: Lesson) -> list[list[float]]:
        """Train in place; returns the curve: step, loss, held-out score."""
