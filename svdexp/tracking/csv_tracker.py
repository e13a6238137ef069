"""tracker=csv: figures.csv in the sweep's folder, or in a single run's: a row for every figure, as it is known."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from svdexp.record import Results
from svdexp.schema import Config
from svdexp.tracking.findings import Findings
from svdexp.tracking.places import sweep_folder

FILE, COLUMNS = "figures.csv", ("time", "run", "key", "value")
PATIENCE = 60.0  # seconds that a row may wait for those of other cells


@dataclass(frozen=True)
class CsvTracker:
    """Rows of time (UTC), the run's folder, key and value; where a key comes again, the last row holds.

    One key a row, because cells of a sweep may have different keys, and no row that stands there is ever changed.
    """

    def start(self, config: Config, run_dir: Path, cell: str) -> "CsvSession":
        """The file, to which the first stage will write."""
        return CsvSession((sweep_folder(run_dir) or run_dir) / FILE, run_dir.name)


class CsvSession:
    """One run's rows."""

    url = None

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run

    def stages(self, figures: Results) -> None:
        """Their rows."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append(self.path, [(now, self.run, key, value) for key, value in figures.items()])

    def log(self, findings: Findings) -> None:
        """A row for every number and word of the record."""
        self.stages(dict(findings.figures))

    def finish(self, succeeded: bool) -> None:
        """Nothing: all is written."""


def append(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Add rows to a table that other processes add to as well; a new one gets its head."""
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE), path.open("a+b") as file:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        else:
            file.seek(-1, io.SEEK_END)
            if file.read() != b"\n":  # a row that a full disk cut short
                text.write("\n")
        writer.writerows(rows)
        file.write(text.getvalue().encode())
