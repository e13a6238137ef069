"""Command line: `python -m svdexp.bench.sweeps` prints what streamed sweeps take beside bare passes of the whole model.

A bare forward pass has the same windows, in the same batches, through the blocks; a bare pass with gradients goes
forward twice and back once, to the inputs, window by window, as a streamed one does. What the sums of second moments
take is told apart: a sweep that measures one small layer of the first and one of the last block goes the same way as
one that measures all.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from svdexp.bench.folders import write_llama
from svdexp.bench.timing import speedup
from svdexp.runtime.invocation import command
from svdexp.schema import ModelConfig

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
WINDOWS, LENGTH = 24, 128
SMALLEST = "k_proj"


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=command("bench.sweeps"), description="Streamed sweeps against bare passes.")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    asked = parser.parse_args(words)
    with TemporaryDirectory() as folder:
        show(Path(folder), asked.precision)
    return 0


def show(folder: Path, precision: str) -> None:
    """Measure in a folder, and print."""
    import torch

    from svdexp.calibration.dense import forward, forward_and_backward
    from svdexp.checkpoints.loading import load_model
    from svdexp.checkpoints.loading_streamed import load_streamed
    from svdexp.data.windows import batches
    from svdexp.factorisation import InputMoment, TwoSided, needs_of
    from svdexp.models.behaviour import frozen
    from svdexp.models.structure import Targets, find_matrices

    write_llama(folder / "model", SHAPE)
    config, device, dtype = ModelConfig("it", str(folder / "model")), torch.device("cpu"), getattr(torch, precision)
    whole: Any = load_model(config, dtype, device)
    streamed = load_streamed(config, dtype, device, folder / "blocks")
    windows = torch.randint(SHAPE["vocab_size"], (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    layers = find_matrices(whole, Targets())
    few = [layer for layer in layers if layer.name.endswith(SMALLEST)]

    def bare(gradients: bool) -> None:
        for _, batch in batches(windows, 1 if gradients else None):
            forward(whole.base_model, batch)
            if gradients:
                with frozen(whole):
                    forward_and_backward(whole, batch)

    for name, weighting in (("forward", InputMoment()), ("with gradients", TwoSided())):
        for what, measured in (("few layers measured", [few[0], few[-1]]), ("all layers measured", layers)):
            needs = {layer.name: needs_of(weighting, layer.m, layer.n) for layer in measured}
            ours = partial(swept, streamed, measured, windows, needs, folder / "states")
            ratio = 1 / speedup(ours, partial(bare, isinstance(weighting, TwoSided)))
            print(f"{precision}, {name}, {what}: {ratio:.2f} × a bare pass", flush=True)


def swept(model: Any, layers: Any, windows: Any, needs: Mapping[str, Sequence[str]], folder: Path) -> None:
    """A sweep for what `needs` says of each of the layers, which is then let go."""
    from svdexp.calibration.streamed import Sweep
    from svdexp.runtime.shelves import Shelf

    shelves = {need: Shelf() for part in needs.values() for need in part}
    Sweep(model, layers, windows, shelves, folder, needs).carry_out()


if __name__ == "__main__":
    sys.exit(interruptible(main))
