"""The report as files: a tidy table, Markdown with pictures, and one HTML page."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from svdexp.published import published
from svdexp.report import pictures
from svdexp.report.collect import Missing, Record, layers
from svdexp.report.document import Section, html, markdown
from svdexp.report.frame import tidy
from svdexp.report.style import styles
from svdexp.report.tables import beside_published, best_per_ratio, every_run, without_results

TITLE = "svdexp: report"


def write(records: Sequence[Record], gone: Sequence[Missing], target: Path) -> str:
    """Write everything into `target` and say what is there."""
    frame = tidy(records)
    found = {record["folder"]: layers(Path(record["folder"])) for record in records}
    looks = styles(frame["series"])
    drawn = [
        section
        for model, rows in frame.groupby("model")
        for section in pictures.sections(str(model), rows, found, looks)
    ]
    sections = [*summary(frame, gone), *drawn, *details(records)]
    target.mkdir(parents=True, exist_ok=True)
    frame.to_csv(target / "results.csv", index=False)
    frame.to_parquet(target / "results.parquet", index=False)
    for picture in (picture for section in drawn for picture in section.pictures):
        (target / picture.name).write_bytes(picture.png)
    (target / "report.md").write_text(markdown(TITLE, sections))
    (target / "report.html").write_text(html(TITLE, sections))
    return f"{len(records)} runs, {len(gone)} cells without results: {target / 'report.html'}"


def summary(frame: pd.DataFrame, gone: Sequence[Missing]) -> list[Section]:
    """What failed, and what was best."""
    cells = f"{len(frame)} runs with results, {len(gone)} cells without."
    sections = [Section("Cells without results", [cells], without_results(gone))] if gone else []
    words = "The run of least perplexity. Stages that it found in the cache count no seconds."
    return [*sections, Section("Best per ratio", [words] if gone else [cells, words], best_per_ratio(frame))]


def details(records: Sequence[Record]) -> list[Section]:
    """Every run, and what papers print of the same cells."""
    sections = [Section("All runs", rows=every_run(records))]
    rows, notes = beside_published(records, published())
    return [*sections, Section("Published figures of the same cells", rows=rows, notes=notes)] if rows else sections
