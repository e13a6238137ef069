"""A document of titles, words, tables and pictures, as Markdown or as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from svdexp.report.tables import Rows


@dataclass(frozen=True)
class Picture:
    """A PNG file's name and content, and what it shows in words."""

    name: str
    caption: str
    png: bytes

    @property
    def data(self) -> str:
        """The content as text, for a page that holds it."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """A title and what stands below it, in this order."""

    title: str
    words: Sequence[str] = ()
    rows: Rows | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


def markdown_table(rows: Rows) -> str:
    """Rows of cells, the heading first."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def numbered(notes: Sequence[str]) -> str:
    """Footnotes in order."""
    return "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The document, with pictures as files beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.words]
        parts += [markdown_table(section.rows)] if section.rows else []
        parts += [f"![{section.title}]({picture.name})\n\n{picture.caption}" for picture in section.pictures]
        parts += [numbered(section.notes)] if section.notes else []
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: Sequence[Section]) -> str:
    """The document with its pictures in it."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, autoescape=select_autoescape(default=True))
    return environment.get_template("page.html.jinja").render(title=title, sections=sections)
