"""Text by name, and the token windows cut from it."""

from svdexp.data.instructions import Row, chat_text
from svdexp.data.texts import TEXTS, Split, check_text, read_rows, read_text, require_rows
from svdexp.data.windows import batches, cut_windows, tokenize

__all__ = [
    "TEXTS",
    "Row",
    "Split",
    "batches",
    "chat_text",
    "check_text",
    "cut_windows",
    "read_rows",
    "read_text",
    "require_rows",
    "tokenize",
]
