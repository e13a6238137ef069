"""The report as files: a tidy table, Markdown with pictures, and one HTML page."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from svdexp.report import pictures
from svdexp.report.collect import Missing, Record, layers
from svdexp.report.document import Section, html, markdown
from svdexp.report.frame import tidy
from svdexp.report.published import published
from svdexp.report.style import styles
from svdexp.report.tables import PUBLISHED, beside_published, best_per_ratio, every_run, without_results
from svdexp.runtime.disk import UnwritableError, whole_file
from svdexp.runtime.errors import UserError

TITLE = "svdexp: report"


def write(records: Sequence[Record], gone: Sequence[Missing], target: Path) -> str:
    """Write everything into `target` and say what is there.

    Raises:
        UserError: it cannot be written, for instance because the disk is full.
    """
    frame = tidy(records)
    found, damaged = read_layers(records)
    gone = [*gone, *damaged]
    looks = styles(frame["series"])
    drawn = [
        section
        for model, rows in frame.groupby("label")
        for section in pictures.sections(str(model), rows, found, looks)
    ]
    sections = [*summary(frame, gone), *drawn, *details(records)]
    files: dict[str, Callable[[Path], object]] = {
        "results.csv": partial(frame.to_csv, index=False),
        "results.parquet": partial(frame.to_parquet, index=False),
        **{
            picture.name: partial(Path.write_bytes, data=picture.png)
            for section in drawn
            for picture in section.pictures
        },
        "report.md": partial(Path.write_text, data=markdown(TITLE, sections)),
        "report.html": partial(Path.write_text, data=html(TITLE, sections)),
    }
    try:
        for name, put in files.items():
            with whole_file(target / name) as path:
                put(path)
    except UnwritableError as error:
        raise UserError(f"--to {target} cannot be written: {error.reason}") from error
    return f"{len(records)} runs, {len(gone)} cells without results: {target / 'report.html'}"


def read_layers(records: Sequence[Record]) -> tuple[dict[str, list[dict[str, Any]]], list[Missing]]:
    """By a run's folder the rows of its layers, and the folders where these cannot be read."""
    found, damaged = {}, []
    for folder in (str(record["folder"]) for record in records):
        try:
            found[folder] = layers(Path(folder))
        except UserError as error:
            found[folder] = []
            damaged.append(Missing(Path(folder), f"without layers: {error}"))
    return found, damaged


def summary(frame: pd.DataFrame, gone: Sequence[Missing]) -> list[Section]:
    """What failed, and what was best."""
    cells = f"{len(frame)} runs with results, {len(gone)} cells without."
    sections = [Section("Cells without results", [cells], without_results(gone))] if gone else []
    words = "The run of least perplexity. Stages that it found in the cache count no seconds."
    return [*sections, Section("Best per ratio", [words] if gone else [cells, words], best_per_ratio(frame))]


def details(records: Sequence[Record]) -> list[Section]:
    """Every run, and what papers print of the same cells."""
    sections = [Section("All runs", rows=every_run(records))]
    for title, alike in PUBLISHED.items():
        rows, notes = beside_published(records, published(), alike=alike)
        sections += [Section(title, rows=rows, notes=notes)] if rows else []
    return sections
