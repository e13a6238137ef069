"""What truncation took from every block."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from svdexp.report.style import LOOK, Style, grid, legend, log_axis, pick

Layers = Mapping[str, list[dict[str, Any]]]  # a run's folder → the rows of its layers.json


def lost_by_block(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """By block, the mean share of the weighted energy that its layers lost; nothing where no run said."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["block"] is not None and row.get("energy_lost") is not None:
            found[row["block"]].append(row["energy_lost"])
    return {block: sum(values) / len(values) for block, values in sorted(found.items())}


def error_by_depth(rows: pd.DataFrame, layers: Layers, looks: Mapping[str, Style]) -> Figure | None:
    """One panel per ratio, one line per series; None where no run says what its layers lost."""
    lost = {folder: found for folder in rows["folder"] if (found := lost_by_block(layers[folder]))}
    having = rows[rows["folder"].isin(list(lost))]
    if not len(having):
        return None
    ratios = sorted(having["ratio"].unique(), reverse=True)
    figure, axes = grid(len(ratios), 3)
    with mpl.rc_context(LOOK):
        for axis, ratio in zip(axes, ratios, strict=True):
            drawn: list[float] = []
            for name, part in having[having["ratio"] == ratio].groupby("series"):
                said = lost[part["folder"].iloc[-1]]
                found = {block: value for block, value in said.items() if 0 < value < inf}
                look = pick(looks[str(name)], "color", "marker", "linestyle")
                axis.plot(list(found), list(found.values()), label=str(name), markersize=3.5, linewidth=1, **look)
                drawn += found.values()
            if drawn:
                log_axis(axis, 0.8 * min(drawn), 1.25 * max(drawn))
            axis.set_title(f"kept ratio {ratio:g}", loc="left")
            axis.set_xlabel("block")
            axis.set_ylabel("share of the weighted energy lost (log)")
    legend(figure, axes)
    return figure
