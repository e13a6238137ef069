"""Windows of a text to learn from: what calibration and every training with a text of its own ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from svdexp.data.bos import Beginning
from svdexp.data.collections import Collection
from svdexp.data.instructions import chat_tokens
from svdexp.data.mixture import apportioned, interleaved
from svdexp.data.texts import Reading, Split, check_text, files_of, read_rows, read_text, require_rows, whole_files
from svdexp.data.windows import cut_windows, tokenize
from svdexp.schema import MIXTURE, CalibrationConfig


@dataclass(frozen=True)
class Excerpt:
    """Which text, and which of its windows.

    Attributes:
        text: a name as in calibration.text.
        files: the paths behind the name `files`.
        chat: instruction data as conversations in the tokenizer's chat template.
        samples: how many windows; None is all.
        seq_len: tokens a window.
        collection: the data set behind the names `hub` and `images`.
        shares: of the texts that the name `mixture` stands for, by name.
        knob: the key that configures it, to blame in errors.
    """

    text: str
    files: Sequence[str]
    chat: bool
    samples: int | None
    seq_len: int
    collection: Collection | None = None
    shares: tuple[tuple[str, float], ...] = ()
    knob: str = "calibration"

    @classmethod
    def of(cls, part: CalibrationConfig) -> "Excerpt":
        """What calibrates."""
        found = None
        if part.dataset is not None:
            found = Collection(part.dataset, part.subset, part.split, part.column)
        shares = tuple(zip(part.parts, part.shares or [1.0] * len(part.parts), strict=True))
        return cls(part.text, part.files, part.chat, part.samples, part.seq_len, found, shares)

    @property
    def members(self) -> "list[Excerpt]":
        """The excerpts that a mixture is made of, each with its share of the windows; of another text, itself."""
        if self.text != MIXTURE:
            return [self]
        counts = apportioned([share for _, share in self.shares], self.samples or 0)
        names = [name for name, _ in self.shares]
        parts = zip(names, counts, strict=True)
        return [replace(self, text=name, samples=count, shares=()) for name, count in parts if count]

    @property
    def _reading(self) -> Reading:
        return Reading(collection=self.collection, knob=self.knob)

    def check(self) -> None:
        """Raise UserError now for a mistake that reading would find later: cheap, and never downloads."""
        if self.text == MIXTURE:
            for member in self.members:
                member.check()
            return
        check_text(self.text, Split.calibration, self.files, self._reading)
        if self.chat:
            require_rows(self.text, Split.calibration, self.files, self._reading)

    def read_from(self) -> list[Path]:
        """The local files that the text is read from; of one from the hub there are none.

        Raises:
            UserError: as `check`.
        """
        if self.text == MIXTURE:
            return [path for member in self.members for path in member.read_from()]
        return files_of(self.text, Split.calibration, self.files, self._reading)

    def whole_files(self) -> dict[str, list[Path]]:
        """Those of them whose whole text is learnt, by the key that names them."""
        if self.text == MIXTURE:
            return {key: paths for member in self.members for key, paths in member.whole_files().items()}
        key = f"{self.knob}.files" if self.text == "files" else f"{self.knob}.text={self.text}"
        return {key: whole_files(self.text, Split.calibration, self.files, self._reading)}

    def windows(self, tokenizer: Any, bos: Beginning, generator: torch.Generator | None = None) -> torch.Tensor:
        """Token ids (samples, seq_len): the first windows, or, with a generator, windows drawn by it.

        Raises:
            UserError: the text cannot be read, or is too short for the samples that are asked for.
        """
        if self.text == MIXTURE:
            return interleaved([member.windows(tokenizer, bos, generator) for member in self.members])
        of_windows = bos.of_windows
        stream, knob = self._tokens(tokenizer, bos), f"{self.knob}.samples"
        return cut_windows(stream, self.seq_len, self.samples, knob=knob, bos=of_windows, generator=generator)

    def _tokens(self, tokenizer: Any, bos: Beginning) -> torch.Tensor:
        """All tokens of the text, (T,); with the one at its start, if `bos` has one there."""
        source = (self.text, Split.calibration, self.files, self._reading)
        if not self.chat:
            return bos.begun(tokenize(read_text(*source), tokenizer))
        stream = chat_tokens(read_rows(*source), tokenizer, self.knob)
        return bos.begun(stream[1:] if bos.token is not None and stream[:1].tolist() == [bos.token] else stream)
