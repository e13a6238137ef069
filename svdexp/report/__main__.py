"""Command line: `python -m svdexp.report FOLDER… [--to FOLDER]`.

Prints a Markdown table of every results.json below the folders: one row a run, sorted by model, method, storage and
falling ratio. Where papers print a perplexity of the same model, method, storage, ratio and text, a second table puts
it beside the measured one. With --to, writes tables and pictures instead (docs/report.md).
"""

from svdexp.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from svdexp.errors import UserError
from svdexp.published import published
from svdexp.report.collect import Missing, Record, missing, read
from svdexp.report.document import markdown_table, numbered
from svdexp.report.tables import beside_published, every_run, without_results


def main(words: Sequence[str] | None = None) -> int:
    """Report on the folders on the command line."""
    parser = argparse.ArgumentParser(prog="python -m svdexp.report", description="Tables and pictures of many runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="of runs and sweeps; searched to any depth")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="write report.html, report.md, tables and pictures here"
    )
    options = parser.parse_args(words)
    try:
        gone = missing(options.folders)
        records = read(options.folders, gone)
        if options.to is None:
            show(records, gone)
        else:
            from svdexp.report.write import write  # matplotlib takes a second

            print(write(records, gone, options.to))
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    return 0


def show(records: Sequence[Record], gone: Sequence[Missing]) -> None:
    """Print the tables."""
    print(markdown_table(every_run(records)))
    rows, notes = beside_published(records, published())
    if rows:
        print(f"\nPublished figures of the same cells:\n\n{markdown_table(rows)}\n\n{numbered(notes)}")
    if gone:
        print(f"\nCells without results:\n\n{markdown_table(without_results(gone))}")


if __name__ == "__main__":
    sys.exit(interruptible(main))
