"""Text by name, and the token windows cut from it."""

from svdexp.data.texts import TEXTS, Split, check_text, read_text
from svdexp.data.windows import batches, cut_windows, tokenize

__all__ = ["TEXTS", "Split", "batches", "check_text", "cut_windows", "read_text", "tokenize"]
