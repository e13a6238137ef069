"""A document of titles, words, tables and pictures, as Markdown and as files beside it; `page.py` has it as HTML."""

import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path

from svdexp.report.latex import latex
from svdexp.report.tables import Rows, Table
from svdexp.report.vega import Plot, pdf, png, svg
from svdexp.runtime.markdown import in_line, numbered, table

LONGEST = 100  # characters of a title in a file's name
Files = dict[str, Callable[[Path], object]]  # by path below the report's folder, what writes it


@dataclass(frozen=True)
class Picture:
    """A picture, and what it shows in words."""

    name: str
    caption: str
    plot: Plot


@dataclass(frozen=True)
class Section:
    """A title and what stands below it, in this order; `model` is what it is of, where it is of one."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    model: str = ""

    @property
    def heading(self) -> str:
        """The title with the model."""
        return f"{self.title}: {self.model}" if self.model else self.title


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The document, with pictures as files beside it."""
    parts = [f"# {in_line(title)}"]
    for section in sections:
        parts += [f"## {in_line(section.heading)}", *map(in_line, section.words)]
        for one in section.tables:
            parts += [f"### {in_line(one.title)}"] if len(section.tables) > 1 else []
            parts += [table(with_strong(one)), *([in_line(one.words)] if one.words else [])]
        for picture in section.pictures:
            parts += [f"![{in_line(section.heading)}](pictures/{picture.name}.png)\n\n{in_line(picture.caption)}"]
        parts += [numbered(section.notes)] if section.notes else []
    return "\n\n".join(parts) + "\n"


def with_strong(one: Table) -> Rows:
    """The rows of a table with stars around what is bold; names have none, figures alone are bold."""
    return [
        [f"**{cell}**" if (i, j) in one.strong else cell for j, cell in enumerate(row)]
        for i, row in enumerate(one.rows)
    ]


def files(sections: Sequence[Section]) -> Files:
    """Every picture as SVG, PDF and PNG, every table as CSV and LaTeX."""
    found: Files = {}
    for section in sections:
        for picture in section.pictures:
            drawn = cache(partial(svg, picture.plot))
            for kind, turned in (("svg", str.encode), ("pdf", pdf), ("png", png)):
                found[f"pictures/{picture.name}.{kind}"] = partial(_draw, drawn, turned)
        for one in section.tables:
            name = f"tables/{file_name(one.title, section.model)}"
            while f"{name}.csv" in found:
                name += "-more"
            found[f"{name}.csv"] = partial(Path.write_text, data=_csv(one.rows))
            found[f"{name}.tex"] = partial(Path.write_text, data=latex(one))
    return found


def file_name(title: str, model: str = "") -> str:
    """`ranks-llama-7b`; a model that no file can be called after gets digits, so that no two share a file."""
    said = re.sub(r"[^\w.]+", "-", title, flags=re.ASCII).strip("-").lower()[:LONGEST]
    word = re.sub(r"[^\w.-]+", "_", model, flags=re.ASCII)[:LONGEST]
    digits = "" if word == model else hashlib.sha256(model.encode()).hexdigest()[:8]
    return "-".join(filter(None, [said, word, digits]))


def _draw(drawn: Callable[[], str], turned: Callable[[str], bytes], path: Path) -> None:
    path.write_bytes(turned(drawn()))


def _csv(rows: Rows) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
