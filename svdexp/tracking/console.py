"""The tables at the end of a run, and what to do next. Every row carries the name of its key in results.json."""

import logging
import math
from collections.abc import Collection
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
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
    FLOPS_PER_TOKEN,
    FORMS,
    GENERATION,
    GENERATION_BYTES,
    LATENCY,
    METHOD,
    MODEL,
    PARAMS,
    PEAK_DEVICE,
    PEAK_DEVICE_BY_STAGE,
    PEAK_RSS,
    PEAK_RSS_BY_STAGE,
    PHASES,
    PPL,
    RATIO,
    RELOAD,
    RESULTS,
    RUN_DIR,
    SPEED,
    TARGET_BITS,
)
from svdexp.record.speeds import even, speedup, speedup_over_routed, spread
from svdexp.runtime.invocation import command, shown
from svdexp.runtime.sizes import size_in_words
from svdexp.runtime.words import FILE_ONLY

log = logging.getLogger(__name__)

SHARES = (ACC, ACC_NORM)  # with a standard error; their change is a difference
# How the run went; its stages' seconds were said when they ended.
RUN = (RATIO, ACHIEVED_RATIO, PEAK_RSS, PEAK_DEVICE, RELOAD, DAMPED_LAYERS)
FIGURES = (PPL, *SHARES, SPEED, PARAMS, BYTES)
LABELS: dict[Entry[Any], str] = {
    TARGET_BITS: "bits of the compressed layers",
    PPL: "perplexity",
    ACC: "accuracy",
    ACC_NORM: "accuracy by length",
    SPEED: "tokens per second",
    LATENCY: "latency in ms",
    GENERATION_BYTES: "memory while generating",
    FLOPS_PER_TOKEN: "FLOPs a token",
    PARAMS: "parameters",
    BYTES: "stored size",
    RATIO: "ratio asked for",
    ACHIEVED_RATIO: "ratio achieved",
    DAMPED_LAYERS: "layers whose moment was damped",
    RELOAD: "logits after loading again, at most off by",
    PEAK_RSS: "peak memory",
    PEAK_RSS_BY_STAGE: "peak memory",
    PEAK_DEVICE: "peak memory of the device",
    PEAK_DEVICE_BY_STAGE: "peak memory of the device",
}


def show(results: Record, *, saved: bool = False, last: bool = True) -> None:
    """Print dense beside compressed, then how the run went and what to do next; the log file has it, too.

    Args:
        results: the record.
        saved: whether there is a checkpoint.
        last: whether nothing comes after this run, as in a sweep.
    """
    rest = _rest(results, ("dense", "compressed"))
    _print([_comparison(results), *map(Text, verdicts(results)), *rest, *(following(results, saved) if last else [])])


def show_one(results: Record) -> None:
    """Print the figures of one model, then how the run went."""
    table = Table(title=f"{MODEL.of(results)} · {_where(results)}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    for key in results:
        if is_one_of(key, FIGURES):
            table.add_row(label(key), figure(results, key))
    _print([table, *_rest(results, ("continuation",))])


def label(key: str) -> Text:
    """What people call a figure, and behind it its key: `perplexity, pydoc  (ppl/pydoc)`."""
    found = place(key)
    if found is None or found.entry not in LABELS:
        return Text(key)
    member = key.partition("/")[2].replace("_", " ")
    said = f"{LABELS[found.entry]}, {member}" if member else LABELS[found.entry]
    return Text.assemble(said, "  ", (f"({key})", "dim"))


def verdicts(results: Record) -> list[str]:
    """One sentence for each speed at which the compressed model loses to the dense one, or that comes to the same, one
    on the dense model with our products, and one on the forms that layers have, where there was a choice.

    A difference inside what repeats of one measurement differ by is none.
    """
    sentences = []
    for phase in PHASES:
        factor = speedup(results, phase)
        if factor is not None and even(results, phase):
            apart = f"repeats of one measurement differ by {spread(results, phase):.0%}"
            sentences.append(f"As fast as dense in {phase}: {factor:.2f} ×, where {apart}.")
        elif factor is not None and factor < 1:
            sentences.append(f"The compressed model is slower in {phase}: {factor:.2f} × dense.")
    if beside := {phase: factor for phase in PHASES if (factor := speedup_over_routed(results, phase))}:
        said = ", ".join(f"{phase} {factor:.2f} ×" for phase, factor in beside.items())
        sentences.append(f"Beside dense with svdexp's own products: {said}.")
    if forms := FORMS.get(results):
        said = ", ".join(f"{form} in {count}" for form, count in forms.items())
        sentences.append(f"Forms, and in how many layers: {said}.")
    return sentences


def following(results: Record, saved: bool) -> list[Text]:
    """Lines that say what can be done with a finished run."""
    folder = shown(Path(RUN_DIR.of(results)))
    lines = [(f"{command('report')} {folder} --to report", "tables and pictures")]
    if saved:
        lines = [
            (f"{command('export')} path={folder} to=FOLDER", "a checkpoint for others"),
            (f'svdexp.load("{folder}")', "in Python: the model and its tokenizer"),
            *lines,
        ]
    width = max(len(line) for line, _ in lines)
    return [Text("next:"), *(Text(f"  {line:{width}}  {says}") for line, says in lines)]


def _print(pieces: Collection[RenderableType]) -> None:
    """Print on standard output, and as plain text into the log file."""
    file = StringIO()
    for console in (Console(), Console(file=file, width=120)):
        for piece in pieces:
            console.print(piece, soft_wrap=isinstance(piece, Text), highlight=False)
    log.info("\n%s", file.getvalue().rstrip(), extra=FILE_ONLY)


def number(key: str, value: float) -> str:
    """A figure as a person reads it: bytes in MB or kB, counts with separators, else four digits, `nan`, `inf`."""
    if unit_of(key) is Unit.bytes:
        return size_in_words(value)
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
    if not dense:
        return ""
    factor = value / dense
    return f"{factor:.3f} ×" if not factor >= 1000 else f"{factor:,.0f} ×"


def beside_dense(results: Record, key: str, dense: str) -> list[str]:
    """A row of a table: the key, the dense model's figure, the compressed one's, and what became of it."""
    there, here = _number(results, dense), _number(results, key)
    alike = ", even" if is_one_of(key, (SPEED,)) and even(results, key.partition("/")[2]) else ""
    return [key, figure(results, dense), figure(results, key), change(key, there, here) + alike]


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
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for key, dense in compared(results).items():
        table.add_row(label(key), *beside_dense(results, key, dense)[1:])
    return table


def _rest(results: Record, speakers: tuple[str, ...]) -> list[RenderableType]:
    """Continuations of prompts, if there are any; stages; where the record is."""
    pieces: list[RenderableType] = []
    if sayings := GENERATION.of(results):
        said = Table("prompt", *speakers, title="generation", title_justify="left", show_lines=True)
        for entry in sayings:
            said.add_row(*(Text(entry[column]) for column in ("prompt", *speakers)))
        pieces.append(said)
    return [*pieces, _run(results), Text(f"{RUN_DIR.of(results)}/{RESULTS}")]


def _run(results: Record) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key in results:
        if is_one_of(key, RUN):
            table.add_row(label(key), number(key, _number(results, key)))
    return table
