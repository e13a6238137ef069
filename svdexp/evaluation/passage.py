"""What perplexity is measured on: the windows of a text, which of their tokens count, and by what protocol."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from svdexp.data import (
    NAMES,
    Beginning,
    Collection,
    Reading,
    Split,
    check_text,
    cut_windows,
    dataset_of,
    draw_from_rows,
    draw_from_text,
    read_documents,
    resolve_bos,
    scored_tokens,
    separator_of,
    split_of,
    tokenize,
    with_first,
)
from svdexp.data.captions import Viewer, pairs_of, scored_captions
from svdexp.runtime.errors import UserError, require
from svdexp.schema import IMAGES, Cut, EvalConfig, SpecialTokens


@dataclass(frozen=True)
class TextProtocol:
    """All that a perplexity depends on beside the model, as results.json says it.

    Attributes:
        preset: the name of the evaluation; its keys may have been changed one by one.
        dataset, split: which text.
        rows: how many rows of it were read.
        separator: what joined them.
        cut: contiguous, pieces or rows (`Cut`); captions: of images, one a window.
        seq_len: tokens per window, with its beginning-of-sequence token.
        stride: tokens from the beginning of one window to that of the next; None for windows that are drawn.
        bos: none, every or start (`Bos`); `tokenizer` is said as what it came to. `start` is that of the text or, where
            windows are drawn, of the piece or row before one is. processor: what it puts before an image.
        special_tokens: text or parsed (`SpecialTokens`): those that are written out in the text.
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
    special_tokens: str
    windows: int
    tokens: int


@dataclass(frozen=True)
class Passage:
    """Windows (N, L) int64, which of their tokens count (N, L) bool, and where they come from."""

    windows: torch.Tensor
    scored: torch.Tensor
    protocol: TextProtocol

    def __len__(self) -> int:
        """How many windows."""
        return len(self.windows)


def passage(name: str, part: EvalConfig, tokenizer: Any) -> Passage:
    """The text called `name` as `part` wants it evaluated.

    Raises:
        UserError: the text cannot be read or is too short, the tokenizer lacks what `eval.bos` asks for, or the stride
            is more than a window holds.
    """
    reading = reading_of(name, part)
    return passage_of(
        name,
        read_documents(name, Split.evaluation, part.files, reading),
        part,
        tokenizer,
        separator=separator_of(name, Split.evaluation, reading),
        dataset=dataset_of(name, part.files, reading),
        split=split_of(name, Split.evaluation, reading),
    )


def passage_of(
    name: str, rows: Sequence[str], part: EvalConfig, tokenizer: Any, *, separator: str, dataset: str, split: str
) -> Passage:
    """The same of `rows` that are there already, which `separator` joins; `dataset` and `split` are for the protocol.

    Raises:
        UserError: as `passage`, but for reading.
    """
    bos = resolve_bos(part.bos, tokenizer)
    body = part.body(bos.mode)
    windows = _windows(name, part, rows, separator, tokenizer, bos)
    stride = (part.stride or body) if part.cut_of(name) is Cut.contiguous else None
    scored = scored_tokens(len(windows), part.seq_len, stride or part.seq_len)
    protocol = TextProtocol(
        preset=part.name,
        dataset=dataset,
        split=split,
        rows=len(rows),
        separator=separator,
        cut=part.cut_of(name).value,
        seq_len=part.seq_len,
        stride=stride,
        bos=bos.mode.value,
        special_tokens=part.special_tokens.value,
        windows=len(windows),
        tokens=int(scored.sum()),
    )
    return Passage(windows, scored, protocol)


def captions_passage(part: EvalConfig, viewer: Viewer) -> Passage:
    """Captions, each after its image: nothing else counts.

    Raises:
        UserError: the data set cannot be read, or has no images, or fewer than asked for.
    """
    reading = reading_of(IMAGES, part)
    found = reading.collection
    assert found is not None, "the schema wants eval.dataset"
    count, knob = part.windows_of(IMAGES)
    pairs = pairs_of(found, "eval", count)
    require(len(pairs) >= (count or 1), f"{knob}={count}, but there are {len(pairs)} images with captions")
    windows, scored = scored_captions(pairs[:count], viewer)
    protocol = TextProtocol(
        preset=part.name,
        dataset=found.name,
        split=found.split,
        rows=len(windows),
        separator="",
        cut="captions",
        seq_len=windows.shape[1],
        stride=None,
        bos="processor",
        special_tokens=SpecialTokens.text.value,
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
            if name not in NAMES:
                raise UserError(f"eval.{key}: no text is called {name!r}; choose from {', '.join(NAMES)}")
    for name in part.texts:
        check_text(name, Split.evaluation, part.files, reading_of(name, part))


def _windows(
    name: str, part: EvalConfig, rows: Sequence[str], separator: str, tokenizer: Any, bos: Beginning
) -> torch.Tensor:
    """(N, L) tokens of the rows, cut as `part` says."""

    def encode(text: str) -> torch.Tensor:
        return bos.begun(tokenize(text, tokenizer, parse_special=part.special_tokens is SpecialTokens.parsed))

    count, knob = part.windows_of(name)
    cut = part.cut_of(name)
    if cut is Cut.contiguous or count is None:
        stream = encode(separator.join(rows))
        return cut_windows(stream, part.seq_len, count, knob=knob, bos=bos.of_windows, stride=part.stride)
    body = part.body(bos.mode)
    if cut is Cut.rows:
        return with_first(bos.of_windows, draw_from_rows(rows, encode, body, count))
    return with_first(bos.of_windows, draw_from_text(separator.join(rows), encode, body, count))


def reading_of(name: str, part: EvalConfig) -> Reading:
    """Which rows of the text called `name` evaluate, and how they are joined."""
    found = None
    if part.dataset is not None:
        found = Collection(part.dataset, part.subset, part.split_by_text.get(name, part.split), part.column)
    return Reading(
        collection=found,
        split=part.split_by_text.get(name),
        separator=part.separator_by_text.get(name, part.separator),
        rows=part.rows_by_text.get(name),
    )


def protocols(passages: dict[str, Passage]) -> dict[str, dict[str, Any]]:
    """The protocol of every text, for results.json."""
    return {name: asdict(found.protocol) for name, found in passages.items()}
