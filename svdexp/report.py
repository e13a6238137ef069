"""`python -m svdexp.report FOLDER…`: a Markdown table of every results.json below the folders.

One row a run, sorted by model, method, storage and falling ratio. A figure that a run lacks is left blank. Where papers
print a perplexity of the same model, method, storage, ratio and text, a second table puts it beside the measured one.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svdexp.errors import UserError
from svdexp.published import Published, published
from svdexp.schema import TargetsConfig

FIXED = ("model", "method", "weighting", "allocation", "storage", "ratio", "achieved_ratio")
FULL = asdict(TargetsConfig())  # what a run compresses unless it is told otherwise
SECONDS = ("calibration", "factorisation", "allocation", "storage", "update")


def read(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of compressions below `folders`; standalone evaluations are passed over.

    Raises:
        UserError: there is none, or one is unreadable.
    """
    records = []
    for path in sorted(path for folder in folders for path in folder.rglob("results.json")):
        try:
            records.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    records = [record for record in records if "method" in record]
    if not records:
        where = ", ".join(map(str, folders)) or "no folder: name one"
        raise UserError(f"no results.json of a compression below {where}")
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
    return _markdown(rows)


def comparison(records: Sequence[dict[str, Any]], known: Published) -> str:
    """What was measured beside what papers print of the same cell, as Markdown; empty where there is no such cell."""
    heading = ["model", "method", "allocation", "storage", "ratio", "text", "measured by", "measured", "published"]
    rows = [[*heading, "source", "protocol there", "notes"]]
    notes: dict[str, int] = {}
    for record in records:
        if record.get("targets", FULL) != FULL:  # a ratio of other layers
            continue
        cell = [str(record.get(key) or "") for key in ("model", "method", "allocation", "storage")]
        for key in sorted(key for key in record if key.startswith("ppl/")):
            text = key.removeprefix("ppl/")
            for figure in known.of(cell[0], cell[1], cell[3], record["ratio"], "ppl", text):
                numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in figure.footnotes]
                measured = f"{_cell(record[key])} ± {_cell(record.get(f'ppl_stderr/{text}'))}"
                said = [_cell(record["ratio"]), text, _protocol(record, text), measured, f"{figure.value:g}"]
                rows.append([*cell, *said, figure.source, figure.protocol, ", ".join(numbers)])
    if len(rows) == 1:
        return ""
    return "\n".join([_markdown(rows), "", *(f"{number}. {known.footnotes[note]}" for note, number in notes.items())])


def _protocol(record: dict[str, Any], text: str) -> str:
    """How a perplexity was measured, in few words; runs of older versions do not say."""
    found = record.get("protocol", {}).get(text)
    if found is None:
        return ""
    return (
        f"{found['preset']}: {found['split']}, {found['cut']}, {found['windows']} × {found['seq_len']}, "
        f"BOS {found['bos']}, {found['tokens']} tokens"
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the heading first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Print the tables of the folders on the command line."""
    try:
        records = read([Path(word) for word in sys.argv[1:]])
        print(table(records))
        if beside := comparison(records, published()):
            print(f"\nPublished figures of the same cells:\n\n{beside}")
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
