"""Markdown of words that anybody may have chosen: they hide no HTML, and end neither their line nor their block."""

import re
from collections.abc import Sequence
from html import escape


def in_line(words: str) -> str:
    """The words on one line."""
    return escape(" ".join(words.split()), quote=False)


def code(words: str) -> str:
    """The words on one line, as code."""
    return f"`{in_line(words).replace('`', chr(39))}`"


def fenced(text: str) -> str:
    """The text as it is, in a block of code that nothing in it ends."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the heading first."""
    lines = ["| " + " | ".join(in_line(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def numbered(notes: Sequence[str]) -> str:
    """Footnotes in order."""
    return "\n".join(f"{number}. {in_line(note)}" for number, note in enumerate(notes, 1))
