"""What perplexity is measured on: the windows of a text, which of their tokens count, and by what protocol."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from svdexp.data import (
    TEXTS,
    Reading,
    Split,
    check_text,
    cut_windows,
    dataset_of,
    draw_from_rows,
    draw_from_text,
    read_documents,
    scored_tokens,
    separator_of,
    split_of,
    tokenize,
)
from svdexp.errors import UserError
from svdexp.schema import Bos, Cut, EvalConfig


@dataclass(frozen=True)
class Protocol:
    """All that a perplexity depends on beside the model, as results.json says it.

    Attributes:
        preset: the name of the evaluation; its keys may have been changed one by one.
        dataset, split: which text.
        rows: how many rows of it were read.
        separator: what joined them.
        cut: contiguous, pieces or rows (`Cut`).
        seq_len: tokens per window, with its beginning-of-sequence token.
        stride: tokens from the beginning of one window to that of the next; None for windows that are drawn.
        bos: none, every or start (`Bos`); `tokenizer` is said as what it came to. `start` is that of the text or, where
            windows are drawn, of the piece or row before one is.
        windows: how many.
        tokens: how many were predicted and count.
    """

    preset: str
    dataset: str
    split: str
    rows: int
    separator: str
    cut: str
    seq_len: int
    stride: int | None
    bos: str
    windows: int
    tokens: int


@dataclass(frozen=True)
class Passage:
    """Windows (N, L) int64, which of their tokens count (N, L) bool, and where they come from."""

    windows: torch.Tensor
    scored: torch.Tensor
    protocol: Protocol

    def __len__(self) -> int:
        """How many windows."""
        return len(self.windows)


def passage(name: str, part: EvalConfig, tokenizer: Any) -> Passage:
    """The text called `name` as `part` wants it evaluated.

    Raises:
        UserError: the text cannot be read or is too short, or the tokenizer lacks what `eval.bos` asks for.
    """
    reading = reading_of(name, part)
    rows = read_documents(name, Split.evaluation, part.files, reading)
    separator = separator_of(name, Split.evaluation, reading)
    bos, token = resolve_bos(part.bos, tokenizer)
    windows = _windows(name, part, rows, separator, tokenizer, bos, token)
    stride = (part.stride or part.body) if part.cut_of(name) is Cut.contiguous else None
    scored = scored_tokens(len(windows), part.seq_len, stride or part.seq_len)
    protocol = Protocol(
        preset=part.name,
        dataset=dataset_of(name, part.files),
        split=split_of(name, Split.evaluation, reading),
        rows=len(rows),
        separator=separator,
        cut=part.cut_of(name).value,
        seq_len=part.seq_len,
        stride=stride,
        bos=bos.value,
        windows=len(windows),
        tokens=int(scored.sum()),
    )
    return Passage(windows, scored, protocol)


def check_texts(part: EvalConfig) -> None:
    """Raise UserError for what can be known to be wrong with the texts of `part` before anything is read.

    What a preset says of a text that is not evaluated has no effect, but its name must be one.
    """
    for key in ("separator_by_text", "split_by_text", "rows_by_text", "cut_by_text"):
        for name in getattr(part, key):
            if name not in TEXTS and name != "files":
                raise UserError(f"eval.{key}: no text is called {name!r}; choose from {', '.join([*TEXTS, 'files'])}")
    for name in part.texts:
        check_text(name, Split.evaluation, part.files, reading_of(name, part))


def _windows(
    name: str, part: EvalConfig, rows: Sequence[str], separator: str, tokenizer: Any, bos: Bos, token: int | None
) -> torch.Tensor:
    """(N, L) tokens of the rows, cut as `part` says."""

    def encode(text: str) -> torch.Tensor:
        tokens = tokenize(text, tokenizer)
        return torch.cat([torch.tensor([token]), tokens]) if bos is Bos.start else tokens

    count, knob = part.windows_of(name)
    cut = part.cut_of(name)
    if cut is Cut.contiguous or count is None:
        every = token if bos is Bos.every else None
        stream = encode(separator.join(rows))
        return cut_windows(stream, part.seq_len, count, knob=knob, bos=every, stride=part.stride)
    if cut is Cut.rows:
        return draw_from_rows(rows, encode, part.seq_len, count)
    return draw_from_text(separator.join(rows), encode, part.seq_len, count)


def reading_of(name: str, part: EvalConfig) -> Reading:
    """Which rows of the text called `name` evaluate, and how they are joined."""
    return Reading(
        split=part.split_by_text.get(name),
        separator=part.separator_by_text.get(name, part.separator),
        rows=part.rows_by_text.get(name),
    )


def resolve_bos(mode: Bos, tokenizer: Any) -> tuple[Bos, int | None]:
    """What `mode` comes to with this tokenizer, and the token that it takes.

    Raises:
        UserError: the tokenizer has no beginning-of-sequence token.
    """
    bos = tokenizer.bos_token_id
    if mode is Bos.tokenizer:
        added = tokenizer("", verbose=False)["input_ids"]
        mode = Bos.start if bos is not None and added[:1] == [bos] else Bos.none
    if mode is not Bos.none and bos is None:
        raise UserError(f"eval.bos={mode.value}, but the model's tokenizer has no beginning-of-sequence token")
    return mode, None if mode is Bos.none else int(bos)


def protocols(passages: dict[str, Passage]) -> dict[str, dict[str, Any]]:
    """The protocol of every text, for results.json."""
    return {name: asdict(found.protocol) for name, found in passages.items()}
