"""The estimate as a table of few digits."""

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from svdexp.estimate.speed import Speed
from svdexp.estimate.stages import Stage


def render(stages: Sequence[Stage], speed: Speed, what: str, beside: int = 0) -> str:
    """The rows, their total and their peak as text; `what` says which run and device.

    `beside` are the bytes in every row that are no tensors'.
    """
    table = Table()
    for heading in ("", "TFLOP", "time", "memory"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for stage in stages:
        table.add_row(
            stage.name, rounded(stage.work.flops / 1e12), duration(speed.seconds(stage.work)), gigabytes(stage.bytes)
        )
    table.add_section()
    seconds = sum(speed.seconds(stage.work) for stage in stages)
    flops, peak = sum(stage.work.flops for stage in stages), max(stage.bytes for stage in stages)
    table.add_row("total time, peak memory", rounded(flops / 1e12), duration(seconds), gigabytes(peak))
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table)
    return (
        f"Estimate, good to a factor of about two: {what}\n"
        f"{buffer.getvalue()}"
        f"speed of the device, from short products: {rounded(speed.model / 1e9)} GFLOP/s in the model's format, "
        f"{rounded(speed.eigen / 1e9)} in eigendecompositions\n"
        f"of the memory Python and its libraries take {gigabytes(beside)}\n"
        "not counted: reading and writing files, and what a cache spares"
    )


def rounded(value: float) -> str:
    """Two significant digits; small values as a bound."""
    if value < 0.01:
        return "0" if value == 0 else "< 0.01"
    value = float(f"{value:.1e}")  # before the digits are counted: 9.96 is 10
    return f"{value:,.{max(1 - math.floor(math.log10(value)), 0)}f}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever is readable."""
    if seconds < 1:
        return "< 1 s"
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 100)):
        if seconds < limit * size:
            return f"{rounded(seconds / size)} {unit}"
    return f"{rounded(seconds / 86400)} days"


def gigabytes(count: float) -> str:
    """Bytes in GB of 10⁹."""
    return f"{rounded(count / 1e9)} GB"
