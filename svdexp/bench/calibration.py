"""Command line: `python -m svdexp.bench.calibration` prints what statistics cost beside the passes that they come with.

Of the demo model, whole: C for svd_llm against a bare forward pass, C and G for kron against a bare forward and
backward one, all over the same windows.
"""

import sys
from functools import partial

from svdexp.runtime.interruption import interruptible

WINDOWS, LENGTH = 4, 512


def main() -> int:
    """Print both ratios, medians over alternating pairs."""
    from svdexp.bench.demo import demo
    from svdexp.bench.timing import speedup
    from svdexp.calibration.dense import collect, forward, forward_and_backward, smallest_model
    from svdexp.factorisation import InputMoment, TwoSided, Weighting, needs_of
    from svdexp.models.behaviour import frozen
    from svdexp.models.structure import Targets, find_matrices

    model, windows = demo(WINDOWS, LENGTH)
    layers = find_matrices(model, Targets())

    def bare(gradients: bool) -> None:
        run, body = (forward_and_backward, model) if gradients else (forward, smallest_model(model, layers))
        with frozen(model):
            for batch in windows[:, None] if gradients else [windows]:
                run(body, batch)

    def measured(weighting: Weighting) -> None:
        collect(model, layers, windows, {x.name: needs_of(weighting, x.m, x.n) for x in layers})

    pairs: list[tuple[str, Weighting, bool]] = [
        ("C / forward", InputMoment(), False),
        ("C and G / forward and backward", TwoSided(), True),
    ]
    for name, weighting, gradients in pairs:
        plain, ours = partial(bare, gradients), partial(measured, weighting)
        print(f"{name}: {1 / speedup(ours, plain):.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
