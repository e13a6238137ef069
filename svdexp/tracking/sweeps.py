"""The table at the end of a sweep: one line for each cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svdexp.record import RESULTS, Record
from svdexp.record.kinds import NUMBER
from svdexp.record.results import ACC, AVERAGE, BYTES, PPL, RATIO
from svdexp.runtime.errors import UserError
from svdexp.runtime.invocation import command, shown
from svdexp.runtime.reading import read_object
from svdexp.tracking.console import number


@dataclass(frozen=True)
class Line:
    """A cell: what tells it apart, its folder, and what became of it."""

    apart: Mapping[str, str]
    folder: Path
    state: str

    @property
    def results(self) -> Record:
        """Its record; empty where there is none."""
        try:
            return read_object(self.folder / RESULTS)
        except UserError:
            return {}


def show_sweep(lines: Sequence[Line], sweep: Path) -> None:
    """Print the cells of a sweep's folder, and how to report on them."""
    console = Console()
    console.print(table_of(lines))
    line = f"tables and pictures: {command('report')} {shown(sweep)} --to {shown(sweep)}/report"
    console.print(line, soft_wrap=True, highlight=False)


def table_of(lines: Sequence[Line]) -> Table:
    """What tells cells apart, then ratio, perplexities, mean accuracy and size where cells have them, and states."""
    apart = list(dict.fromkeys(key for line in lines for key in line.apart))
    records = [line.results for line in lines]
    figures = [key for key in figures_of(records) if key not in apart]
    table = Table()
    for key in apart:
        table.add_column(key, no_wrap=True)
    for key in figures:
        table.add_column(key, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for line, results in zip(lines, records, strict=True):
        shown = [number(key, NUMBER.checked(key, results[key])) if key in results else "" for key in figures]
        table.add_row(*(Text(line.apart.get(key, "")) for key in apart), *shown, Text(line.state))
    return table


def figures_of(records: Sequence[Record]) -> list[str]:
    """The keys of the figures that a table of cells shows, as far as a record has them."""
    texts = dict.fromkeys(PPL.at(text) for results in records for text in PPL.of(results))
    wanted: list[Any] = [RATIO.name, *texts, ACC.at(AVERAGE), BYTES.name]
    return [key for key in wanted if any(key in results for results in records)]
