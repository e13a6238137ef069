"""Windows of a text to learn from: what calibration and every training with a text of its own ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svdexp.data.bos import Beginning
from svdexp.data.instructions import chat_tokens
from svdexp.data.texts import Split, check_text, files_of, read_rows, read_text, require_rows, whole_files
from svdexp.data.windows import cut_windows, tokenize
from svdexp.schema import CalibrationConfig


@dataclass(frozen=True)
class Excerpt:
    """Which text, and which of its windows.

    Attributes:
        text: a name as in calibration.text.
        files: the paths behind the name `files`.
        chat: instruction data as conversations in the tokenizer's chat template.
        samples: how many windows; None is all.
        seq_len: tokens a window.
    """

    text: str
    files: Sequence[str]
    chat: bool
    samples: int | None
    seq_len: int

    @classmethod
    def of(cls, part: CalibrationConfig) -> "Excerpt":
        """What calibrates."""
        return cls(part.text, part.files, part.chat, part.samples, part.seq_len)

    def check(self) -> None:
        """Raise UserError now for a mistake that reading would find later: cheap, and never downloads."""
        check_text(self.text, Split.calibration, self.files)
        if self.chat:
            require_rows(self.text, Split.calibration, self.files)

    def read_from(self) -> list[Path]:
        """The local files that the text is read from; of one from the hub there are none.

        Raises:
            UserError: as `check`.
        """
        return files_of(self.text, Split.calibration, self.files)

    def whole_files(self, knob: str) -> dict[str, list[Path]]:
        """Those of them whose whole text is learnt, by the key below `knob` that names them."""
        key = f"{knob}.files" if self.text == "files" else f"{knob}.text={self.text}"
        return {key: whole_files(self.text, Split.calibration, self.files)}

    def windows(
        self, tokenizer: Any, bos: Beginning, knob: str, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Token ids (samples, seq_len): the first windows, or, with a generator, windows drawn by it.

        Raises:
            UserError: the text cannot be read, or is too short for what `knob`.samples asks for.
        """
        of_windows = bos.of_windows
        stream, knob = self._tokens(tokenizer, bos), f"{knob}.samples"
        return cut_windows(stream, self.seq_len, self.samples, knob=knob, bos=of_windows, generator=generator)

    def _tokens(self, tokenizer: Any, bos: Beginning) -> torch.Tensor:
        """All tokens of the text, (T,); with the one at its start, if `bos` has one there."""
        source = (self.text, Split.calibration, self.files)
        if not self.chat:
            return bos.begun(tokenize(read_text(*source), tokenizer))
        stream = chat_tokens(read_rows(*source), tokenizer)
        return bos.begun(stream[1:] if bos.token is not None and stream[:1].tolist() == [bos.token] else stream)
