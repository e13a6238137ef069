"""What every training can do."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

from svdexp.data import Excerpt
from svdexp.data.reads import described
from svdexp.data.texts import NAMES
from svdexp.descent.descent import Curve
from svdexp.runtime.errors import require
from svdexp.runtime.shelves import Shelf, fingerprint
from svdexp.schema import COLLECTED
from svdexp.training.student import Student

# A data set of any name, images and mixtures have more options than a training has.
OWN = tuple(name for name in NAMES if name not in COLLECTED)

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


class OwnText:
    """What a training with these options has in common with others: it may learn a text of its own.

    Attributes:
        text: what is learnt, a name as in calibration.text; None is the calibration windows.
        files: with text=files.
        chat: instruction data as conversations in the tokenizer's chat template.
        samples: how many items of the text; None is all.
        seq_len: tokens an item.
    """

    text: str | None
    files: Sequence[str]
    chat: bool
    samples: int | None
    seq_len: int

    @property
    @abstractmethod
    def knob(self) -> str:
        """Where these options stand in the configuration."""

    def excerpt(self) -> Excerpt | None:
        """The text of its own, if it has one.

        Raises:
            UserError: no text has this name, or it is one that calibrates alone, such as a data set of any name.
        """
        if self.text is None:
            return None
        require(self.text in OWN, f"{self.knob}.text: {self.text!r} cannot be; choose from {', '.join(OWN)}")
        mine = (self.text == "files") == bool(self.files)
        require(mine, f"{self.knob}.files and {self.knob}.text=files go together")
        return Excerpt(self.text, self.files, self.chat, self.samples, self.seq_len, knob=self.knob)


class Trained(NamedTuple):
    """What became of a training: its curve, and how many tokens it saw."""

    curve: Curve
    tokens: int


def learns_stored(training: Training) -> bool:
    """Whether it trains what is stored, after rounding; one that has no option `stored` trains plain factors."""
    return getattr(training, "stored", False)


def with_text(training: Training, own: torch.Tensor | None) -> str:
    """The training as the identity of what comes after it knows it; `own` are the windows of a text of its own."""
    return described(training) if own is None else f"{described(training)} {fingerprint({'': own})}"


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
        own = texts.get(name, windows)
        done.append(with_text(training, texts.get(name)))
        part = partial(shelf, trainings=list(done), text=fingerprint({"": own}))
        lesson = Lesson(student, own, part, seed)
        curve = training(lesson)
        found[name] = Trained(curve, training.tokens(curve, own))
    return found
