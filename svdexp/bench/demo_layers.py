"""Command line: `python -m svdexp.bench.demo_layers [CHECKOUT]` prints CPU seconds of decomposing the demo model.

Every layer, two-sided: ours, from what calibration leaves; the textbook, from C and G; and, given another checkout of
svdexp, such as an older commit's, that one's from the same C and G, in turn with ours.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from svdexp.runtime.interruption import interruptible

WINDOWS, LENGTH, TIMES = 8, 512, 2
# What the other checkout runs: it prints the seconds that it takes. Its Metric has C and G alone.
OTHER = """
import sys, time, torch
from safetensors.torch import load_file
from svdexp.factorisation import Metric, decompose
spent = 0.0
for path in sys.argv[1:]:
    found = load_file(path)
    for name in sorted({key.rpartition("/")[0] for key in found}):
        W, C, G = (found[f"{name}/{key}"] for key in ("W", "gram", "grad_gram"))
        start = time.process_time()
        decompose(W, Metric(left=G, right=C))
        spent += time.process_time() - start
print(spent)
"""


def main(words: Sequence[str] | None = None) -> int:
    """Print the seconds, and ratios to ours."""
    asked = sys.argv[1:] if words is None else words
    with TemporaryDirectory() as folder:
        files = leave_statistics(Path(folder))
        for _ in range(TIMES):
            mine = ours(files)
            print(f"ours {mine:.1f} s", flush=True)
            for checkout in asked:
                other = elsewhere(Path(checkout), files)
                print(f"{Path(checkout).name} {other:.1f} s: {other / mine:.2f} x", flush=True)
        plain = textbook(files)
        print(f"textbook {plain:.1f} s: {plain / mine:.2f} x")
    return 0


def leave_statistics(folder: Path) -> list[Path]:
    """A file a block: of every layer W, C and G, and what ours takes in place of one of them."""
    from safetensors.torch import save_file

    from svdexp.bench.demo import demo
    from svdexp.calibration.dense import collect
    from svdexp.factorisation import TwoSided, needs_of
    from svdexp.models.structure import Targets, find_matrices

    model, windows = demo(WINDOWS, LENGTH)
    layers = find_matrices(model, Targets())
    needs = {x.name: dict.fromkeys(["gram", "grad_gram", *needs_of(TwoSided(), x.m, x.n)]) for x in layers}
    statistics = collect(model, layers, windows, {name: list(asked) for name, asked in needs.items()})
    files = []
    for group in dict.fromkeys(layer.group for layer in layers):
        tensors = {
            f"{layer.name}/{need}": tensor.clone()
            for layer in layers
            if layer.group == group
            for need, tensor in {"W": layer.weight(model), **statistics[layer.name]}.items()
        }
        files.append(folder / f"{group}.safetensors")
        save_file(tensors, files[-1])
    return files


def ours(files: Sequence[Path]) -> float:
    """CPU seconds of all decompositions."""
    import time

    from safetensors.torch import load_file

    from svdexp.factorisation import TwoSided, decompose, needs_of

    spent = 0.0
    for path in files:
        found = load_file(path)
        for name in sorted({key.rpartition("/")[0] for key in found}):
            W = found[f"{name}/W"]
            statistics = {need: found[f"{name}/{need}"] for need in needs_of(TwoSided(), *W.shape)}
            start = time.process_time()
            decompose(W, TwoSided()(statistics))
            spent += time.process_time() - start
    return spent


def elsewhere(checkout: Path, files: Sequence[Path]) -> float:
    """The same of another checkout, in a process of its own."""
    command = [sys.executable, "-c", OTHER, *map(str, files)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    # in its folder, which Python looks into before PYTHONPATH
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def textbook(files: Sequence[Path]) -> float:
    """The same of the textbook: Cholesky factors of C and G, an SVD, two inverses; damped where there are none."""
    import time

    import torch
    from safetensors.torch import load_file

    from svdexp.factorisation.moments import definite

    spent = 0.0
    for path in files:
        found = load_file(path)
        for name in sorted({key.rpartition("/")[0] for key in found}):
            W, C, G = (found[f"{name}/{key}"] for key in ("W", "gram", "grad_gram"))
            C, G = (part.double() if (part := definite(moment)[0]) is not None else moment for moment in (C, G))
            start = time.process_time()
            L, R = torch.linalg.cholesky(G).mT, torch.linalg.cholesky(C)
            U, sigma, Vh = torch.linalg.svd(L @ W.double() @ R, full_matrices=False)
            _ = torch.linalg.inv(L) @ (U * sigma), Vh @ torch.linalg.inv(R)
            spent += time.process_time() - start
    return spent


if __name__ == "__main__":
    sys.exit(interruptible(main))
