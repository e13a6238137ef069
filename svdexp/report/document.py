"""A document of titles, words, tables and pictures, as Markdown or as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from svdexp.report.tables import Rows
from svdexp.runtime.markdown import in_line, numbered, table


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


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The document, with pictures as files beside it."""
    parts = [f"# {in_line(title)}"]
    for section in sections:
        title = in_line(section.title)
        parts += [f"## {title}", *map(in_line, section.words)]
        parts += [table(section.rows)] if section.rows else []
        parts += [f"![{title}]({picture.name})\n\n{in_line(picture.caption)}" for picture in section.pictures]
        parts += [numbered(section.notes)] if section.notes else []
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: Sequence[Section]) -> str:
    """The document with its pictures in it."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, autoescape=select_autoescape(default=True))
    return environment.get_template("page.html.jinja").render(title=title, sections=sections)
