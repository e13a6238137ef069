"""Command line: `python -m svdexp.bench` prints every ratio. Above 1 means that svdexp's way is faster."""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Sequence

from svdexp.runtime.invocation import command


def main(words: Sequence[str] | None = None) -> int:
    """Print every ratio."""
    parser = argparse.ArgumentParser(
        prog=command("bench"), description="Measures speed as ratios: above 1, svdexp's way is faster."
    )
    parser.parse_args(words)
    show()
    return 0


def show() -> None:
    """Measure and print."""
    from itertools import chain

    import torch
    from rich.console import Console
    from rich.table import Table

    from svdexp.bench import decompositions, estimates, experts, layers, stacks, training

    torch.manual_seed(0)
    table = Table(title="speed against the plain way (above 1 is faster)", title_justify="left")
    for heading in ("what", "plain way", "shape", "ratio"):
        table.add_column(heading)
    parts = (decompositions, layers, experts, stacks, training, estimates)
    for row in chain.from_iterable(part.rows() for part in parts):
        table.add_row(row.what, row.plain, row.shape, f"{row.ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(interruptible(main))
