"""Per-layer figures as rows and lines, of a sensible size for a tracker: no model makes a table of millions."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from svdexp.allocation import RankCurves
from svdexp.allocation.spectra import tails
from svdexp.tracking.layers import LayerRow

# Of each spectrum; at logarithmic distances, because spectra fall steeply at first.
SPECTRUM_POINTS = 32
# Of each layer's truncation position, evenly over the training.
CURVE_POINTS = 50

Line = list[tuple[int, float]]


def over_depth(rows: Iterable[LayerRow], key: str) -> dict[str, Line]:
    """By projection, (block, mean of `key`) in the order of blocks; layers without a block or a figure are left out.

    A dense layer's `rank` counts as full: min(m, n).
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        value = min(row["m"], row["n"]) if key == "rank" and row["rank"] is None else row[key]
        if row["block"] is not None and value is not None:
            found[row["projection"]][row["block"]].append(value)
    return {
        projection: [(block, sum(values) / len(values)) for block, values in sorted(blocks.items())]
        for projection, blocks in found.items()
    }


def spectrum_rows(spectra: Mapping[str, torch.Tensor]) -> list[list[str | int | float]]:
    """Per layer at most SPECTRUM_POINTS of [layer, i, σ_i, share of the energy beyond i], i from 1."""
    rows: list[list[str | int | float]] = []
    for name, spectrum in spectra.items():
        beyond = tails(spectrum)
        total = float(beyond[0]) or 1.0
        for i in np.unique(np.geomspace(1, len(spectrum), SPECTRUM_POINTS).round().astype(int)).tolist():
            rows.append([name, i, float(spectrum[i - 1]), float(beyond[i]) / total])
    return rows


def gamma_rows(curves: RankCurves) -> list[list[str | int | float]]:
    """Per layer at most CURVE_POINTS of [layer, step, γ], steps from 0, the last one included."""
    steps = len(curves.perplexity)
    picked = np.unique(np.linspace(0, steps - 1, min(steps, CURVE_POINTS)).round().astype(int)).tolist()
    return [[name, step, values[step]] for name, values in curves.gamma.items() for step in picked]


def learned_lines(curves: RankCurves, projection_of: Mapping[str, str]) -> dict[str, list[float]]:
    """How ranks were learned, by name a value at every step: perplexity, ratio, and `gamma/PROJECTION`."""
    lines = {f"gamma/{projection}": values for projection, values in mean_gamma(curves, projection_of).items()}
    lines |= {"perplexity": curves.perplexity, "ratio": curves.ratio}
    return {name: list(values) for name, values in lines.items()}


def mean_gamma(curves: RankCurves, projection_of: Mapping[str, str]) -> dict[str, Sequence[float]]:
    """By projection, the mean γ of its layers at every step."""
    members: dict[str, list[Sequence[float]]] = defaultdict(list)
    for name, values in curves.gamma.items():
        members[projection_of[name]].append(values)
    return {projection: np.mean(values, axis=0).tolist() for projection, values in members.items()}
