"""`python -m svdexp.bench`: print every ratio. Above 1 means that svdexp's way is faster."""

from itertools import chain

import torch
from rich.console import Console
from rich.table import Table

from svdexp.bench import decompositions, layers, stacks, training


def main() -> None:
    """Print every ratio."""
    torch.manual_seed(0)
    table = Table(title="speed against the plain way (above 1 is faster)", title_justify="left")
    for heading in ("what", "plain way", "shape", "ratio"):
        table.add_column(heading)
    for row in chain(decompositions.rows(), layers.rows(), stacks.rows(), training.rows()):
        table.add_row(row.what, row.plain, row.shape, f"{row.ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
