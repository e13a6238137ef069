"""The report as files: a tidy table, Markdown with pictures, one HTML page, and every table and picture alone."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from svdexp.report import pictures
from svdexp.report.collect import Missing, Record, layers
from svdexp.report.details import as_data, facts
from svdexp.report.document import Files, Section, files, markdown
from svdexp.report.frame import tidy
from svdexp.report.html import page
from svdexp.report.published import published
from svdexp.report.style import styles
from svdexp.report.tables import (
    PUBLISHED,
    Table,
    all_runs,
    beside_published,
    best_per_ratio,
    published_alike,
    without_results,
)
from svdexp.runtime.disk import UnwritableError, whole_file
from svdexp.runtime.errors import UserError

TITLE = "svdexp: report"


def write(records: Sequence[Record], gone: Sequence[Missing], target: Path, rivals: Sequence[Record] = ()) -> str:
    """Write everything into `target` and say what is there.

    Raises:
        UserError: it cannot be written, for instance because the disk is full.
    """
    frame = tidy(records, rivals)
    everything = [*records, *rivals]
    found, damaged = read_layers(records)
    gone = [*gone, *damaged]
    looks = styles(zip(frame["series"], frame["method"].fillna(frame["series"]), strict=True))
    beside = published_alike(records, published())
    drawn = [
        section
        for model, rows in frame.groupby("label")
        for section in pictures.sections(str(model), rows, found, looks, beside)
    ]
    sections = [*summary(frame, gone), *drawn, *details(records, everything, frame)]
    runs = [
        facts(record, number, series, target)
        for number, (record, series) in enumerate(zip(everything, frame["series"], strict=True), 1)
    ]
    data = [
        as_data(record, run.number, run.title, found.get(run.folder, []))
        for record, run in zip(everything, runs, strict=True)
    ]
    put: Files = {
        "results.csv": partial(frame.to_csv, index=False),
        "results.parquet": partial(frame.to_parquet, index=False),
        **files(sections),
        "report.md": partial(Path.write_text, data=markdown(TITLE, sections)),
        "report.html": partial(Path.write_text, data=page(TITLE, sections, looks, runs, data)),
    }
    try:
        for name, write_one in put.items():
            with whole_file(target / name) as path:
                write_one(path)
    except UnwritableError as error:
        raise UserError(f"--to {target} cannot be written: {error.reason}") from error
    known = f"{len(records)} runs, {len(gone)} cells without results"
    known += f", {len(rivals)} models as they are" if rivals else ""
    return f"{known}: {target / 'report.html'}"


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
    compressed = frame["ratio"].notna()
    cells = f"{compressed.sum()} runs with results, {len(gone)} cells without"
    cells += f", {(~compressed).sum()} models as they are." if (~compressed).any() else "."
    failed = Table("Cells without results", without_results(gone)) if gone else None
    sections = [Section("Cells without results", [cells], [failed])] if failed else []
    words = "The run of least perplexity. Stages that it found in the cache count no seconds."
    rows = best_per_ratio(frame)
    if not rows:
        return sections or [Section("Runs", [cells])]
    best = Table("Best per ratio", rows)
    return [*sections, Section("Best per ratio", [words] if gone else [cells, words], [best])]


def details(records: Sequence[Record], everything: Sequence[Record], frame: pd.DataFrame) -> list[Section]:
    """Every run, and what papers print of the same cells."""
    sections = [Section("All runs", tables=[all_runs(everything, frame)])]
    for title, alike in PUBLISHED.items():
        rows, notes = beside_published(records, published(), alike=alike)
        sections += [Section(title, tables=[Table(title, rows)], notes=notes)] if rows else []
    return sections
