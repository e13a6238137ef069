"""Estimates as tables of few digits."""

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from svdexp.estimate.devices import Machine
from svdexp.estimate.stages import Stage

# Of a device's memory, what a run may take: the rest is for its driver's context, and lost between tensors.
USABLE = 0.9


def render(stages: Sequence[Stage], machine: Machine, what: str, beside: int = 0) -> str:
    """The rows, their total and their peak as text, and whether they fit `machine`; `what` says which run and device.

    `beside` are the bytes in every row that are no tensors'.
    """
    speed = machine.speed
    reads = any(stage.name == "load" for stage in stages)
    uncounted = "writing files" if reads else "starting Python, reading and writing files"
    own = f"of the memory Python and its libraries take {gigabytes(beside)}\n" if machine.shared else ""
    return (
        f"Estimate, good to a factor of about two: {what}\n"
        f"{rows(stages, machine)}\n"
        f"speed of the device, {machine.known_from}: {rounded(speed.model / 1e9)} GFLOP/s in the model's format, "
        f"{rounded(speed.eigen / 1e9)} in eigendecompositions, {rounded(speed.bandwidth / 1e9)} GB/s\n"
        f"{own}"
        f"not counted: {uncounted}, and what a cache spares"
    )


def rows(stages: Sequence[Stage], machine: Machine) -> str:
    """The rows, their total and their peak as text, and whether they fit `machine`."""
    table, speed = Table(), machine.speed
    for heading in ("", "TFLOP", "time", "memory", "disk"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for stage in stages:
        done = rounded(stage.work.flops / 1e12), duration(speed.seconds(stage.work))
        table.add_row(stage.name, *done, gigabytes(stage.bytes), gigabytes(stage.disk))
    table.add_section()
    seconds = sum(speed.seconds(stage.work) for stage in stages)
    flops = sum(stage.work.flops for stage in stages)
    most = [gigabytes(max(sizes)) for sizes in zip(*((stage.bytes, stage.disk) for stage in stages), strict=True)]
    table.add_row("total time, peak memory and disk", rounded(flops / 1e12), duration(seconds), *most)
    return f"{printed(table)}{fitting(stages, machine)}"


def fitting(stages: Sequence[Stage], machine: Machine) -> str:
    """Whether the stages fit the machine's memory, in a sentence."""
    large = [stage for stage in stages if not fits(stage, machine)]
    place = f"the {gigabytes(machine.memory)} of {machine.name}"
    if not large:
        return f"fits: every stage stays below {USABLE:.0%} of {place}"
    names = ", ".join(f"{stage.name} ({gigabytes(stage.bytes)})" for stage in large)
    return f"DOES NOT FIT: {names} take{'s' if len(large) == 1 else ''} more than {USABLE:.0%} of {place}"


def fits(stage: Stage, machine: Machine) -> bool:
    """Whether a stage leaves enough of the machine's memory to others."""
    return stage.bytes <= USABLE * machine.memory


def printed(table: Table) -> str:
    """A table as text."""
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table)
    return buffer.getvalue()


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
