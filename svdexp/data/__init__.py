"""Text by name, and the token windows cut from it."""

from svdexp.data.bos import Beginning, resolve_bos, warn_without_bos
from svdexp.data.collections import Collection
from svdexp.data.draws import draw_from_rows, draw_from_text
from svdexp.data.excerpt import Excerpt
from svdexp.data.instructions import Row, chat_tokens
from svdexp.data.sources import TEXTS
from svdexp.data.texts import (
    NAMES,
    Reading,
    Split,
    characters_of,
    check_text,
    dataset_of,
    files_of,
    read_documents,
    read_rows,
    read_text,
    require_rows,
    separator_of,
    split_of,
    whole_files,
)
from svdexp.data.windows import at_once, batch_windows, batches, cut_windows, scored_tokens, tokenize, with_first

__all__ = [
    "NAMES",
    "TEXTS",
    "Beginning",
    "Collection",
    "Excerpt",
    "Reading",
    "Row",
    "Split",
    "at_once",
    "batch_windows",
    "batches",
    "characters_of",
    "chat_tokens",
    "check_text",
    "cut_windows",
    "dataset_of",
    "draw_from_rows",
    "draw_from_text",
    "files_of",
    "read_documents",
    "read_rows",
    "read_text",
    "require_rows",
    "resolve_bos",
    "scored_tokens",
    "separator_of",
    "split_of",
    "tokenize",
    "warn_without_bos",
    "whole_files",
    "with_first",
]
