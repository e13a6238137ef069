"""Speed against perplexity, and the runs that no other beats in both."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from svdexp.record.results import DECODE, PREFILL
from svdexp.report.curves import CLIP, Plot, ceiling, finite
from svdexp.report.panels import Panel, perplexity_panels
from svdexp.report.style import BEYOND, LOOK, Style, explain_beyond, grid, legend, log_axis, number, pick

PHASES = (DECODE, PREFILL)


def front(speed: Sequence[float], perplexity: Sequence[float]) -> list[int]:
    """The indices that no other beats in both: from the fastest to the one of least perplexity."""
    best, found = np.inf, []
    for index in sorted(range(len(speed)), key=lambda i: (-speed[i], perplexity[i])):
        if perplexity[index] < best:
            best = perplexity[index]
            found.append(index)
    return found


def speed_and_perplexity(rows: pd.DataFrame, looks: Mapping[str, Style]) -> Plot | None:
    """One row of panels per text, decoding and prefill beside each other; None where no run measured speed."""
    cells = []
    for panel in perplexity_panels(rows):
        for phase in (phase for phase in PHASES if f"speedup/{phase}" in rows):
            part = panel.rows[panel.rows[f"speedup/{phase}"].notna()]
            if len(part):
                cells.append((replace(panel, rows=part), phase))
    if not cells:
        return None
    figure, axes = grid(len(cells), 2)
    notes = []
    with mpl.rc_context(LOOK):
        for axis, (panel, phase) in zip(axes, cells, strict=True):
            notes += draw(axis, panel, phase, looks)
    legend(figure, axes)
    return Plot(figure, notes)


def draw(axis: Axes, panel: Panel, phase: str, looks: Mapping[str, Style]) -> list[str]:
    """One panel; says what lies beyond it."""
    key = f"speedup/{phase}"
    top = ceiling(panel, CLIP)
    inside, outside = panel.rows[panel.rows[panel.key] <= top], panel.rows[panel.rows[panel.key] > top]
    measured = finite(panel.rows[panel.dense_key]) if panel.dense_key in panel.rows else []
    known = [float(np.median(measured))] if measured else []
    speed, perplexity = [*inside[key], *([1.0] * len(known))], [*inside[panel.key], *known]
    ratios = [*(f"{ratio:g}" for ratio in inside["ratio"]), *([""] * len(known))]
    best = front(speed, perplexity)
    steps = [[values[i] for i in best] for values in (speed, perplexity)]
    axis.step(*steps, where="post", color="0.6", linewidth=4, alpha=0.5, zorder=1, label="not beaten in both")
    for name in sorted(panel.rows["series"].unique()):  # named even if none of its runs is inside
        part, look = inside[inside["series"] == name], pick(looks[name], "color", "marker")
        axis.plot(part[key], part[panel.key], linestyle="", label=name, **look)
    for i in best:
        axis.annotate(ratios[i], (speed[i], perplexity[i]), (4, 4), textcoords="offset points", fontsize=7)
    if known:
        axis.plot(1.0, *known, "*", color="black", markersize=10, linestyle="", label="dense", zorder=4)
    axis.axvline(1.0, color="0.4", linewidth=0.8, zorder=1)
    axis.set_title(panel.title, loc="left", pad=10)
    axis.set_xlabel(f"{phase} speed, × dense in the same run")
    axis.set_ylabel("perplexity (log)")
    if perplexity:
        log_axis(axis, 0.93 * min(perplexity), 1.15 * max(perplexity))
    for _, run in outside.iterrows():
        axis.plot(run[key], axis.get_ylim()[1], color=looks[run["series"]]["color"], clip_on=False, **BEYOND)
    if len(outside):
        explain_beyond(axis)
    return [
        f"{panel.title}, {run['series']} at {run['ratio']:g}: {number(run[panel.key])}" for _, run in outside.iterrows()
    ]
