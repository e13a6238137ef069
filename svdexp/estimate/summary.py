"""The estimates of a sweep's cells in one table, and what all of them take together."""

from collections.abc import Mapping

from rich.table import Table

from svdexp.estimate.forecast import Forecast
from svdexp.estimate.table import duration, fits, gigabytes, printed


def summary(cells: Mapping[str, Forecast]) -> str:
    """One row a cell, by its name, and the totals."""
    table = Table()
    for heading in ("", "time", "memory", "fits"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for name, cell in cells.items():
        fit = all(fits(row, cell.machine) for row in cell.rows)
        table.add_row(name, duration(cell.seconds), gigabytes(cell.bytes), "yes" if fit else "NO")
    table.add_section()
    whole = sum(cell.seconds for cell in cells.values())
    table.add_row(f"all {len(cells)} cells", duration(whole), gigabytes(max(cell.bytes for cell in cells.values())), "")
    spared = whole - seconds_with_cache(cells)
    kept = f"; what cells find in their common cache leaves {duration(whole - spared)} of that" if spared >= 1 else ""
    return (
        f"Estimate of the sweep, cell by cell on {next(iter(cells.values())).machine.name}\n{printed(table)}"
        f"one after the other on one device{kept}"
    )


def seconds_with_cache(cells: Mapping[str, Forecast]) -> float:
    """Of all cells, where each finds in the cache what an earlier one left there."""
    found: set[tuple[str, str]] = set()
    seconds = 0.0
    for cell in cells.values():
        for row in cell.rows:
            made = (row.name, cell.shared.get(row.name, ""))
            seconds += cell.machine.speed.seconds(row.anew if made in found else row.work)
            if made[1]:
                found.add(made)
    return seconds
