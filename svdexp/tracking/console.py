"""The tables at the end of a run. Every row carries the name of its key in results.json."""

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svdexp.tracking.record import Results, dense_key

# In the record, but no comparison.
COUNTS = ("ppl_stderr/", "ppl_tokens/", "acc_stderr/", "acc_norm_stderr/", "acc_rows/", "speed_spread/")
SHARES = ("acc/", "acc_norm/")  # with a standard error; their change is a difference
STAGES = ("ratio", "achieved_ratio", "seconds/", "peak_", "reload_", "damped_layers")
BY_STAGE = ("peak_rss_bytes/", "peak_device_bytes/")
FIGURES = ("ppl/", *SHARES, "tokens_per_second/", "params", "bytes")


def show(results: Results) -> None:
    """Print dense beside compressed, then how the run went."""
    console = Console()
    console.print(_comparison(results))
    for sentence in slowdowns(results):
        console.print(sentence, highlight=False)
    _show_rest(console, results, ("dense", "compressed"))


def show_one(results: Results) -> None:
    """Print the figures of one model, then how the run went."""
    console = Console()
    table = Table(title=f"{results['model']} · {results['dtype']} on {results['device']}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    for key in results:
        if key.startswith(FIGURES):
            table.add_row(key, figure(results, key))
    console.print(table)
    _show_rest(console, results, ("continuation",))


def slowdowns(results: Results) -> list[str]:
    """One sentence for each speed at which the compressed model loses to the dense one."""
    sentences = []
    for key in ("tokens_per_second/prefill", "tokens_per_second/decode"):
        if key in results and results[key] < results[dense_key(key)]:
            share = results[key] / results[dense_key(key)]
            sentences.append(f"The compressed model is slower in {key.partition('/')[2]}: {share:.2f} × dense.")
    return sentences


def number(key: str, value: float) -> str:
    """A figure as a person reads it: bytes in MB, counts with separators, the rest to four digits, `nan`, `inf`."""
    if "bytes" in key:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def figure(results: Results, key: str, at: Callable[[str], str] = str) -> str:
    """A model's figure for `key`, of shares with the standard error; `at` says where that model's keys stand."""
    if not key.startswith(SHARES):
        return number(key, results[at(key)])
    return f"{results[at(key)]:.3f} ± {results[at(key.replace('/', '_stderr/', 1))]:.3f}"


def change(key: str, dense: float, value: float) -> str:
    """What became of a figure: a factor, which there is not of zero, or a difference of shares."""
    if key.startswith(SHARES):
        return f"{value - dense:+.3f}"
    return f"{value / dense:.3f} ×" if dense else ""


def _comparison(results: Results) -> Table:
    table = Table(
        title=f"{results['model']} · {results['method']} · ratio {results['ratio']:g} · "
        f"{results['dtype']} on {results['device']}",
        title_justify="left",
    )
    for heading in ("", "dense", "compressed", "change"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for key, value in results.items():
        if dense_key(key) in results and not key.startswith(COUNTS):
            dense, compressed = figure(results, key, dense_key), figure(results, key)
            table.add_row(key, dense, compressed, change(key, results[dense_key(key)], value))
    return table


def _show_rest(console: Console, results: Results, speakers: tuple[str, ...]) -> None:
    """Continuations of prompts, if there are any; stages; where the record is."""
    if results["generation"]:
        said = Table("prompt", *speakers, title="generation", title_justify="left", show_lines=True)
        for entry in results["generation"]:
            said.add_row(*(Text(entry[column]) for column in ("prompt", *speakers)))
        console.print(said)
    console.print(_run(results))
    console.print(f"{results['run_dir']}/results.json", soft_wrap=True, highlight=False)


def _run(results: Results) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in results.items():
        if key.startswith(STAGES) and not key.startswith(BY_STAGE):
            table.add_row(key, number(key, value))
    return table
