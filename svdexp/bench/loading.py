"""Command line: `python -m svdexp.bench.loading` prints what opening a checkpoint takes, beside a dense one's.

Each is opened in processes of its own, in turn, with svdexp.load and with plain transformers, and reads one token. Told
are medians of CPU seconds and of how far the peak of memory is above what the imports take, and their ratios to the
dense model's as plain transformers opens it: of opening alone, and with the first token, which is when operators are
loaded and, where there is no compiler, codes are packed.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from svdexp.runtime.invocation import command

ROUNDS = 5
DENSE = "dense"
PLAIN, OURS = "transformers", "svdexp.load"


class Opened(NamedTuple):
    """CPU seconds, and bytes above those of the imports, of opening a folder and of that and its first token."""

    seconds: float
    bytes: int
    seconds_to_token: float
    bytes_to_token: int


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; with `--open`, open one folder and print what that took."""
    parser = argparse.ArgumentParser(prog=command("bench.loading"), description="Opening checkpoints beside dense.")
    parser.add_argument("--shape", choices=["demo", "wide"], default="demo")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--forms", nargs="+", default=["factors", "pivot", "int8", "int4"])
    parser.add_argument("--ratio", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--open", nargs=2, metavar=("FOLDER", "BY"), help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.open:
        print(json.dumps(opened(Path(asked.open[0]), asked.open[1])))
        return 0
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in (DENSE, *asked.forms)}
        for name, folder in folders.items():
            write(name, folder, asked.shape, asked.precision, asked.ratio)
        ways = [(DENSE, PLAIN), *((name, by) for name in asked.forms for by in (PLAIN, OURS))]
        found: dict[tuple[str, str], list[Opened]] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for name, by in ways:
                found[name, by].append(in_a_process(folders[name], by))
    show(found, f"{asked.shape}, {asked.precision}, pairs at {asked.ratio}")
    return 0


def write(name: str, folder: Path, shape: str, precision: str, ratio: float) -> None:
    """A checkpoint of random weights."""
    import torch

    from svdexp.bench.speed import config_of
    from svdexp.bench.stacks import CODES, compressed, in_codes, random_model
    from svdexp.checkpoints.checkpoint import save
    from svdexp.models.matrices import layers_of
    from svdexp.models.structure import Targets, find_matrices

    config, dtype = config_of(shape, None), getattr(torch, precision)
    config.dtype = dtype
    dense = random_model(config).to(dtype)
    if name == DENSE:
        dense.save_pretrained(folder)
        return
    model: Any = in_codes(config, name) if name in CODES else compressed(config, name, ratio)
    layers: dict[str, Any] = dict(layers_of(model, find_matrices(dense, Targets())))
    ranks = {name: layer.pair_shape and layer.pair_shape[0] for name, layer in layers.items()}
    save(model.to(dtype), None, folder, ranks)


def in_a_process(folder: Path, by: str) -> Opened:
    """`opened` in a process of its own."""
    words = [sys.executable, "-m", "svdexp.bench.loading", "--open", str(folder), by]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return Opened(*json.loads(done.stdout))


def opened(folder: Path, by: str) -> Opened:
    """What opening `folder` takes, once everything is imported."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  # the latter is what is opened

    from svdexp.checkpoints import checkpoint
    from svdexp.runtime.clock import peak_rss_bytes

    before, start = peak_rss_bytes(), time.process_time()
    if by == OURS:
        model: Any = checkpoint.load(folder)[0]
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    took, held = time.process_time() - start, peak_rss_bytes() - before
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long))
    return Opened(took, held, time.process_time() - start, peak_rss_bytes() - before)


def show(found: dict[tuple[str, str], list[Opened]], title: str) -> None:
    """Print a row a form and way."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "by", "CPU s", "× dense", "MB", "× dense", "to a token, CPU s", "× dense", "MB", "× dense"):
        table.add_column(heading, justify="right" if heading not in ("", "by") else "left")
    middle = {way: [median(one[i] for one in taken) for i in range(4)] for way, taken in found.items()}
    dense = middle[DENSE, PLAIN]
    for (name, by), taken in middle.items():
        cells = []
        for i, figure in enumerate(taken):
            cells += [f"{figure / 1e6:.0f}" if i % 2 else f"{figure:.2f}", f"{figure / dense[i]:.2f}"]
        table.add_row(name, by, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(interruptible(main))
