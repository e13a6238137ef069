"""Figures against the model's size: perplexity and accuracies, one line per method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from svdexp.report.panels import Panel
from svdexp.report.style import (
    BEYOND,
    DENSE,
    LOOK,
    Style,
    byte_unit,
    explain_beyond,
    grid,
    legend,
    log_axis,
    number,
    pick,
)

# Perplexities beyond this multiple of the dense model's would squash all others.
CLIP = 100.0


@dataclass(frozen=True)
class Plot:
    """A picture, and what it leaves out in words."""

    figure: Figure
    notes: Sequence[str] = ()


def against_size(panels: Sequence[Panel], label: str, looks: Mapping[str, Style], clip: float | None = None) -> Plot:
    """The panels of one kind of figure, `label`, at most three beside each other.

    With `clip` their y axes are logarithmic and end at that multiple of the dense model's value, or of the least one
    where that is not known.
    """
    figure, axes = grid(len(panels), 3)
    notes = []
    with mpl.rc_context(LOOK):
        for axis, panel in zip(axes, panels, strict=True):
            top = ceiling(panel, clip) if clip else np.inf
            unit, name = byte_unit(panel.rows["model_bytes_dense"].max())
            draw_dense(axis, panel, unit)
            notes += draw_lines(axis, panel, looks, top, unit)
            axis.set_title(panel.title, loc="left")
            axis.set_ylabel(label)
            axis.set_xlabel(f"size of the model at 16 bits, {name}")
            if clip:
                low, high = axis.get_ylim()
                drawn = np.concatenate([line.get_ydata() for line in axis.lines] + [[low]])
                positive = drawn[np.isfinite(drawn) & (drawn > 0)]
                bottom = 0.93 * positive.min(initial=top)
                log_axis(axis, bottom, max(1.1 * min(top, high), 1.2 * bottom))
            ratio_axis(axis, panel.rows, unit)
    legend(figure, axes)
    return Plot(figure, notes)


def ceiling(panel: Panel, clip: float) -> float:
    """Where the y axis ends at the latest, in finite numbers."""
    dense = finite(panel.rows[panel.dense_key]) if panel.dense_key in panel.rows else []
    return clip * min(dense or finite(panel.rows[panel.key]), default=1.0)


def finite(values: pd.Series) -> list[float]:
    """Those that can be drawn."""
    return [float(value) for value in values[np.isfinite(values)]]


def draw_dense(axis: Axes, panel: Panel, unit: float) -> None:
    """A line for the dense model's figure, and a star at its size; several where runs differ in number format."""
    if panel.dense_key not in panel.rows:
        return
    known = panel.rows[np.isfinite(panel.rows[panel.dense_key])]
    shown: set[str] = set()
    for value, size in zip(known[panel.dense_key], known["model_bytes_dense"], strict=True):
        if f"{value:.3g}" not in shown:
            axis.axhline(value, label="dense", zorder=1, **DENSE)
            axis.plot(size / unit, value, "*", color="black", markersize=9, zorder=4)
        shown.add(f"{value:.3g}")


def draw_lines(axis: Axes, panel: Panel, looks: Mapping[str, Style], top: float, unit: float) -> list[str]:
    """A marker per run and a line per series through the mean of equal ratios; says what lies above `top`."""
    notes = []
    beyond = 0
    for name, part in panel.rows.groupby("series"):
        look = looks[str(name)]
        part = part.assign(x=part["model_bytes"] / unit, y=part[panel.key].clip(upper=top))
        line = part.groupby("ratio")[["x", "y"]].mean().sort_values("x")
        axis.plot(line["x"], line["y"], **pick(look, "color", "linestyle"))
        inside = part[part[panel.key] <= top]
        axis.plot(inside["x"], inside["y"], linestyle="", **pick(look, "color", "marker"))
        axis.plot([], [], label=str(name), **look)
        for _, run in part[part[panel.key] > top].iterrows():
            # beside each other, where several methods of one size are beyond
            shift = offset_copy(axis.transData, axis.get_figure(root=True), x=6 * (beyond % 3 - 1), units="points")
            axis.plot(run["x"], top, color=look["color"], transform=shift, zorder=5, clip_on=False, **BEYOND)
            notes.append(f"{panel.title}, {name} at {run['ratio']:g}: {number(run[panel.key])}")
            beyond += 1
    if beyond:
        explain_beyond(axis)
    return notes


def ratio_axis(axis: Axes, rows: pd.DataFrame, unit: float) -> None:
    """The kept ratio at the top, where one scale holds for all runs."""
    dense, targets = rows["model_bytes_dense"], rows["target_bytes_dense"]
    if dense.nunique() > 1 or targets.nunique() > 1 or rows["compresses"].nunique() > 1:
        return
    rest, share = float(dense.iloc[0] - targets.iloc[0]), float(targets.iloc[0])
    there: Any = lambda x: (x * unit - rest) / share  # noqa: E731 - matplotlib types its arguments as anything
    back: Any = lambda ratio: (ratio * share + rest) / unit  # noqa: E731
    above = axis.secondary_xaxis("top", functions=(there, back))
    above.set_xticks(sorted({round(ratio, 2) for ratio in rows["ratio"]} | {1.0}))
    above.set_xlabel("kept ratio of the compressed layers", fontsize=8, color="0.35")
    above.tick_params(labelsize=8, colors="0.35")
