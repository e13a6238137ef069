"""Command line: `python -m svdexp.report FOLDER… [--to FOLDER]`.

Prints a Markdown table of every results.json below the folders: one row a run, sorted by model, method, storage and
falling ratio. Where papers print a perplexity of the same model, method, storage, ratio and text, a second table puts
it beside the measured one, and a third those that were measured otherwise, with what differs. A record that cannot be
read is named and left out. With --to, writes tables and pictures instead (docs/report.md).
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from svdexp.report.collect import Missing, Record, standalone, survey
from svdexp.report.published import published
from svdexp.report.tables import PUBLISHED, beside_published, every_run, without_results
from svdexp.runtime.errors import UserError
from svdexp.runtime.invocation import command
from svdexp.runtime.markdown import numbered, table


def main(words: Sequence[str] | None = None) -> int:
    """Report on the folders on the command line."""
    parser = argparse.ArgumentParser(prog=command("report"), description="Tables and pictures of many runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="of runs and sweeps; searched to any depth")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="write report.html, report.md, tables and pictures here"
    )
    options = parser.parse_args(words)
    try:
        records, gone = survey(options.folders)
        if options.to is None:
            show([*records, *standalone(options.folders, records)], records, gone)
        else:
            from svdexp.report.write import write  # pandas and the drawing take a second

            print(write(records, gone, options.to, standalone(options.folders, records)))
        sys.stdout.flush()
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of standard output, which may be a file on a full disk
        print(f"svdexp: the report cannot be printed: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again when it ends
        return 1
    return 0


def show(everything: Sequence[Record], records: Sequence[Record], gone: Sequence[Missing]) -> None:
    """Print the tables: of `everything`, runs and models as they are, and of what papers print of the runs."""
    print(table(every_run(everything)))
    for title, alike in PUBLISHED.items():
        rows, notes = beside_published(records, published(), alike=alike)
        if rows:
            print(f"\n{title}:\n\n{table(rows)}\n\n{numbered(notes)}")
    if gone:
        print(f"\nCells without results:\n\n{table(without_results(gone))}")


if __name__ == "__main__":
    sys.exit(interruptible(main))
