"""The tables at the end of a run. Every row carries the name of its key in results.json."""

import math
from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svdexp.record import Entry, Record, Unit, compared, place, unit_of
from svdexp.record.kinds import NUMBER
from svdexp.record.results import (
    ACC,
    ACC_NORM,
    ACHIEVED_RATIO,
    BYTES,
    DAMPED_LAYERS,
    DEVICE,
    DTYPE,
    GENERATION,
    METHOD,
    MODEL,
    PARAMS,
    PEAK_DEVICE,
    PEAK_RSS,
    PHASES,
    PPL,
    RATIO,
    RELOAD,
    RUN_DIR,
    SECONDS,
    SPEED,
)

SHARES = (ACC, ACC_NORM)  # with a standard error; their change is a difference
STAGES = (RATIO, ACHIEVED_RATIO, SECONDS, PEAK_RSS, PEAK_DEVICE, RELOAD, DAMPED_LAYERS)
FIGURES = (PPL, *SHARES, SPEED, PARAMS, BYTES)


def show(results: Record) -> None:
    """Print dense beside compressed, then how the run went."""
    console = Console()
    console.print(_comparison(results))
    for sentence in slowdowns(results):
        console.print(sentence, highlight=False)
    _show_rest(console, results, ("dense", "compressed"))


def show_one(results: Record) -> None:
    """Print the figures of one model, then how the run went."""
    console = Console()
    table = Table(title=f"{MODEL.of(results)} · {_where(results)}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    for key in results:
        if is_one_of(key, FIGURES):
            table.add_row(key, figure(results, key))
    console.print(table)
    _show_rest(console, results, ("continuation",))


def slowdowns(results: Record) -> list[str]:
    """One sentence for each speed at which the compressed model loses to the dense one."""
    sentences = []
    here, there = SPEED.of(results), SPEED.of_dense(results)
    for phase in PHASES:
        if phase in here and here[phase] < there[phase]:
            sentences.append(f"The compressed model is slower in {phase}: {here[phase] / there[phase]:.2f} × dense.")
    return sentences


def number(key: str, value: float) -> str:
    """A figure as a person reads it: bytes in MB, counts with separators, the rest to four digits, `nan`, `inf`."""
    if unit_of(key) is Unit.bytes:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def figure(results: Record, key: str) -> str:
    """A model's figure for `key`, of shares with the standard error."""
    found = place(key)
    if found is None or found.entry not in SHARES or found.error is None:
        return number(key, _number(results, key))
    return f"{_number(results, key):.3f} ± {_number(results, found.error):.3f}"


def change(key: str, dense: float, value: float) -> str:
    """What became of a figure: a factor, which there is not of zero, or a difference of shares."""
    if is_one_of(key, SHARES):
        return f"{value - dense:+.3f}"
    return f"{value / dense:.3f} ×" if dense else ""


def beside_dense(results: Record, key: str, dense: str) -> list[str]:
    """A row of a table: the key, the dense model's figure, the compressed one's, and what became of it."""
    there, here = _number(results, dense), _number(results, key)
    return [key, figure(results, dense), figure(results, key), change(key, there, here)]


def is_one_of(key: str, entries: Collection[Entry[Any]]) -> bool:
    """Whether a key is of one of these, and of the model that the record is of, not of the dense one beside it."""
    found = place(key)
    return found is not None and not found.of_dense and found.entry in entries


def _number(results: Record, key: str) -> float:
    return NUMBER.checked(key, results[key])


def _where(results: Record) -> str:
    return f"{DTYPE.of(results)} on {DEVICE.of(results)}"


def _comparison(results: Record) -> Table:
    table = Table(
        title=f"{MODEL.of(results)} · {METHOD.of(results)} · ratio {RATIO.of(results):g} · {_where(results)}",
        title_justify="left",
    )
    for heading in ("", "dense", "compressed", "change"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for key, dense in compared(results).items():
        table.add_row(*beside_dense(results, key, dense))
    return table


def _show_rest(console: Console, results: Record, speakers: tuple[str, ...]) -> None:
    """Continuations of prompts, if there are any; stages; where the record is."""
    if sayings := GENERATION.of(results):
        said = Table("prompt", *speakers, title="generation", title_justify="left", show_lines=True)
        for entry in sayings:
            said.add_row(*(Text(entry[column]) for column in ("prompt", *speakers)))
        console.print(said)
    console.print(_run(results))
    console.print(f"{RUN_DIR.of(results)}/results.json", soft_wrap=True, highlight=False)


def _run(results: Record) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key in results:
        if is_one_of(key, STAGES):
            table.add_row(key, number(key, _number(results, key)))
    return table
