"""Command line: `python -m svdexp.bench.wide` streams a random model of Llama-2-7B's width, and says what it takes.

The folder is written one block at a time, or found where an earlier call left it. The run is killed once, when half of
its blocks are decomposed, and repeated. Its lines are told with the CPU's seconds by then, which other work does not
change, and of each process the most memory that it held.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from svdexp.bench.folders import write_llama, write_text
from svdexp.cells.choices import config_dir
from svdexp.record.results import PPL, RESULTS
from svdexp.runtime.invocation import command
from svdexp.runtime.shelves import identity

# Together more tokens than such a model is wide, as in use: a moment of fewer would have to be damped first.
WINDOWS, LENGTH = 12, 512
EVALUATED = 4
RATIO = 0.6
BARS = ("%|", "\x1b[")  # what lines of progress bars hold


class Ended(NamedTuple):
    """How a process ended: its exit status, and the most bytes that it held."""

    code: int
    memory: int


def main(words: Sequence[str] | None = None) -> int:
    """Write, run, kill, repeat, tell."""
    parser = argparse.ArgumentParser(prog=command("bench.wide"), description="Streams a random model of a 7B's width.")
    parser.add_argument("folder", type=Path, help="for the model, its run and its cache; gigabytes a block")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--like", default="llama2-7b", help="a preset of conf/model/ with its shape beside it")
    parser.add_argument("--whole", action="store_true", help="not killed on the way")
    parser.add_argument("keys", nargs="*", help="of the run: method=kron …")
    asked = parser.parse_intermixed_args(words)
    shape = json.loads((Path(config_dir()) / "model" / f"{asked.like}.json").read_text())
    model = prepared(asked.folder, shape | {"num_hidden_layers": asked.blocks}, asked.blocks)
    run = asked.folder / f"run-{identity(keys=asked.keys, blocks=asked.blocks)}"
    call = run_command(asked.folder, model, run, asked.keys)
    if not asked.whole:
        half = asked.blocks // 2
        first = watch(call, lambda: decomposed(Path(f"{run}-cache")) >= half)
        print(f"killed with half of its blocks decomposed: at most {first.memory / 1e9:.2f} GB", flush=True)
    last = watch(call)
    if last.code:
        return last.code
    found = json.loads((run / RESULTS).read_text())
    print(f"at most {last.memory / 1e9:.2f} GB; perplexities {PPL.of(found)}")
    return 0


def prepared(folder: Path, shape: Mapping[str, Any], blocks: int) -> Path:
    """The folder of a model of this shape, beside two texts in its words; written where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"model-{blocks}"
    if not (model / "config.json").is_file():
        write_llama(model, shape)
    for number, name in enumerate("ab"):
        write_text(folder / f"{name}.txt", 2 * WINDOWS * LENGTH, shape["vocab_size"], number)
    return model


def run_command(folder: Path, model: Path, run: Path, keys: Sequence[str]) -> list[str]:
    """A streamed run from the model to a checkpoint and a perplexity."""
    return [
        *(sys.executable, "-m", "svdexp", f"model.path={model}", "residency=streamed", f"ratio={RATIO}", *keys),
        *("calibration=files", f"calibration.files=[{folder / 'a.txt'}]", f"calibration.samples={WINDOWS}"),
        *(f"calibration.seq_len={LENGTH}", "eval=ppl", "eval.texts=[files]", f"eval.files=[{folder / 'b.txt'}]"),
        *(f"eval.windows={EVALUATED}", f"eval.seq_len={LENGTH}", "tracker=none", f"hydra.run.dir={run}"),
        f"cache={run}-cache",
    ]


def decomposed(cache: Path) -> int:
    """How many blocks' decompositions a cache has."""
    return len(list(cache.glob("decompositions/*/*.safetensors")))


def watch(call: Sequence[str], enough: Callable[[], bool] = lambda: False) -> Ended:
    """Run `call` and say its lines, each with the CPU's seconds by then; it is killed when there is `enough`."""
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    inside, memory = psutil.Process(process.pid), [0]
    looker = threading.Thread(target=_look, args=(process, memory, enough))
    looker.start()
    assert process.stdout
    for line in process.stdout:
        if not line.strip() or any(mark in line for mark in BARS):
            continue
        with suppress(psutil.NoSuchProcess):
            times = inside.cpu_times()
            print(f"{times.user + times.system:8.0f} s  {line.rstrip()}", flush=True)
    code = process.wait()
    looker.join()
    return Ended(code, max(memory))


def _look(process: "subprocess.Popen[str]", memory: list[int], enough: Callable[[], bool]) -> None:
    """Note twice a second how much memory a process has held."""
    while process.poll() is None:
        memory.append(_most(process.pid))
        if enough():
            process.kill()
        time.sleep(0.5)


def _most(pid: int) -> int:
    """The most memory that a process has held."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
