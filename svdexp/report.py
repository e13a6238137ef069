"""`python -m svdexp.report FOLDER…`: a Markdown table of every results.json below the folders.

One row a run, sorted by model, method, storage and falling ratio. A figure that a run lacks is left blank.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdexp.errors import UserError

FIXED = ("model", "method", "weighting", "allocation", "storage", "ratio", "achieved_ratio")
SECONDS = ("calibration", "factorisation", "allocation", "storage", "update")


def read(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The records below `folders`.

    Raises:
        UserError: there is none, or one is unreadable.
    """
    records = []
    for path in sorted(path for folder in folders for path in folder.rglob("results.json")):
        try:
            records.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    if not records:
        raise UserError(f"no results.json below {', '.join(map(str, folders)) or 'no folder: name one'}")
    return sorted(records, key=lambda r: (r["model"], r["method"], r["storage"], r.get("allocation", ""), -r["ratio"]))


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as Markdown."""
    texts = sorted({key for record in records for key in record if key.startswith("ppl/")})
    rows = [[*FIXED, *texts, "seconds to compress", "peak RSS, GB"]]
    for record in records:
        seconds = sum(record.get(f"seconds/{stage}", 0.0) for stage in SECONDS)
        rows.append(
            [
                *(_cell(record.get(key)) for key in FIXED),
                *(_cell(record.get(key)) for key in texts),
                f"{seconds:.0f}",
                f"{record['peak_rss_bytes'] / 1e9:.1f}",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Print the table of the folders on the command line."""
    try:
        print(table(read([Path(word) for word in sys.argv[1:]])))
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
