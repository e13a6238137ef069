"""Command line: `svdexp methods` prints every method with its parts and what it is."""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Sequence

from svdexp.cells.catalogue import choices
from svdexp.cells.choices import own_parts
from svdexp.runtime.invocation import command

PARTS = ("weighting", "allocation", "update")


def main(words: Sequence[str] | None = None) -> int:
    """Print two lines for each."""
    argparse.ArgumentParser(prog=command("methods"), description="Every method: its parts, and what it is.").parse_args(
        words
    )
    found = choices("method")
    width = max(len(entry.name) for entry in found) + 2
    for entry in found:
        parts = own_parts(entry.name) or {}
        made = "  ".join(f"{part}={choice}" for part in PARTS if (choice := parts.get(part)))
        print(f"{entry.name:{width}}{entry.says}\n{'':{width}}{made}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
