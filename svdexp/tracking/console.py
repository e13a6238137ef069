"""The table at the end of a run. Every row carries the name of its key in results.json."""

import math

from rich.console import Console
from rich.table import Table

from svdexp.tracking.record import Results, dense_key

COUNTS = ("ppl_stderr/", "ppl_tokens/", "speed_spread/")  # in the record, but no comparison


def show(results: Results) -> None:
    """Print dense beside compressed, then how the run went."""
    console = Console()
    console.print(_comparison(results))
    for sentence in slowdowns(results):
        console.print(sentence, highlight=False)
    console.print(_run(results))
    console.print(f"{results['run_dir']}/results.json", soft_wrap=True, highlight=False)


def slowdowns(results: Results) -> list[str]:
    """One sentence for each speed at which the compressed model loses to the dense one."""
    sentences = []
    for key in ("tokens_per_second/prefill", "tokens_per_second/decode"):
        if key in results and results[key] < results[dense_key(key)]:
            share = results[key] / results[dense_key(key)]
            sentences.append(f"The compressed model is slower in {key.partition('/')[2]}: {share:.2f} × dense.")
    return sentences


def number(key: str, value: float) -> str:
    """A figure as a person reads it: bytes in MB, counts with separators, the rest to four digits."""
    if "bytes" in key:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 6)}f}"


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
            dense = results[dense_key(key)]
            table.add_row(key, number(key, dense), number(key, value), f"{value / dense:.3f} ×")
    return table


def _run(results: Results) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    shown = ("ratio", "achieved_ratio", "seconds/", "peak_", "reload_", "damped_layers")
    for key, value in results.items():
        if key.startswith(shown):
            table.add_row(key, number(key, value))
    return table
