"""Texts as people give them in Python: by name, as files, as documents, or as token ids."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from svdexp.data import Beginning, cut_windows, tokenize
from svdexp.runtime.errors import UserError, require, require_tokens

SEPARATOR = "\n\n"  # between documents
SEQ_LEN = 1024  # tokens of a window, where nothing is said
Text = str | PathLike[str] | Sequence[str] | Sequence[PathLike[str]] | torch.Tensor


def files_in(text: object) -> list[str] | None:
    """The paths that `text` is: one or several `Path`s, or the name of a file that is there; else None."""
    entries: list[object] = list(text) if isinstance(text, list | tuple) else [text]
    if entries and all(isinstance(entry, PathLike) for entry in entries):
        return [str(entry) for entry in entries]
    return [text] if isinstance(text, str) and "\n" not in text and _is_file(text) else None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a text that is longer than names may be
        return False


def documents_in(text: object) -> list[str] | None:
    """The documents that `text` is: several strings, or one with white space in it; else None."""
    if isinstance(text, str):
        return [text] if len(text.split()) > 1 else None
    if isinstance(text, list | tuple) and all(isinstance(entry, str) for entry in text):
        return list(text)
    return None


def names_in(text: object) -> list[str] | None:
    """The names of texts that `text` is: one or several single words; else None."""
    words: list[object] = list(text) if isinstance(text, list | tuple) else [text]
    names = [word for word in words if isinstance(word, str) and len(word.split()) == 1]
    return names if names and len(names) == len(words) else None


def windows_in(tokens: torch.Tensor, knob: str) -> torch.Tensor:
    """Token ids that were given, as (N, L) int64 on the CPU.

    Raises:
        UserError: they are none.
    """
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool)
    shape = tuple(tokens.shape)
    require(whole and tokens.ndim == 2 and len(tokens) > 0, f"{knob}: token ids are integers (N, L), not {shape}")
    require_tokens(f"{knob}: the length of a window", shape[1])
    return tokens.detach().to("cpu", torch.int64)


def cut(
    documents: Sequence[str], tokenizer: Any, bos: Beginning, samples: int | None, seq_len: int | None
) -> torch.Tensor:
    """Calibration windows (samples, seq_len) of documents, joined by blank lines.

    Where nothing is said these are all, of SEQ_LEN tokens, or one window of all tokens where there are fewer.

    Raises:
        UserError: they are too short.
    """
    stream = bos.begun(tokenize(SEPARATOR.join(documents), tokenizer))
    length = seq_len or fitting(stream, bos, SEQ_LEN)
    return cut_windows(stream, length, samples, knob="calibration.samples", bos=bos.of_windows)


def fitting(stream: torch.Tensor, bos: Beginning, length: int) -> int:
    """The length of windows that a text of few tokens (T,) can fill, at most `length`."""
    return max(2, min(length, len(stream) + (bos.of_windows is not None)))


def tokenizer_wanted(what: str) -> UserError:
    """The mistake of text without a tokenizer."""
    return UserError(
        f"{what} given as text needs a tokenizer: tokenizer=AutoTokenizer.from_pretrained(…), or give token ids (N, L)"
    )
