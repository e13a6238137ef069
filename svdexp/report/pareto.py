"""Speed against perplexity, and the runs that no other beats in both."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from svdexp.record.results import DECODE, PREFILL
from svdexp.record.speeds import even
from svdexp.report.curves import CLIP, ceiling, finite, said_beyond
from svdexp.report.front import band, front
from svdexp.report.panels import Panel, perplexity_panels
from svdexp.report.style import STAR, Style, with_error
from svdexp.report.vega import Plot, Spec, lined, lines, logarithmic

PHASES = (DECODE, PREFILL)
TOLD = [
    *({"field": key, "title": title} for key, title in (("series", "method"), ("at", "kept"), ("said", "perplexity"))),
    {"field": "speed", "title": "× dense"},
]


def speed_and_perplexity(rows: pd.DataFrame, looks: Mapping[str, Style]) -> Plot | None:
    """One row of panels per text, decoding and prefill beside each other; None where no run measured speed."""
    drawn: list[Spec] = []
    notes: list[str] = []
    there: set[str] = set()
    for panel in perplexity_panels(rows):
        for phase in (phase for phase in PHASES if f"speedup/{phase}" in rows):
            part = panel.rows[panel.rows[f"speedup/{phase}"].notna()]
            if len(part):
                drawn.append(_panel(replace(panel, rows=part), phase, looks))
                notes += said_beyond(panel, part[part[panel.key] > ceiling(panel, CLIP)])
                there |= set(part["series"])
    known = {name: style for name, style in looks.items() if name in there}
    return Plot(drawn, 2, list(dict.fromkeys(notes)), known) if drawn else None


def _panel(panel: Panel, phase: str, looks: Mapping[str, Style]) -> Spec:
    top = ceiling(panel, CLIP)
    points: list[dict[str, Any]] = [
        {
            **{"x": run[f"speedup/{phase}"], "y": min(run[panel.key], top), "beyond": bool(run[panel.key] > top)},
            **{"series": run["series"], "at": f"{run['ratio']:g}", "said": with_error(run[panel.key], None)},
            "speed": f"{run[f'speedup/{phase}']:.2f}{', even' if even(run.dropna().to_dict(), phase) else ''}",
            "run": f"#run-{run['run']}",
        }
        for _, run in panel.rows.iterrows()
    ]
    inside = [point for point in points if not point["beyond"]]
    measured = finite(panel.rows[panel.dense_key]) if panel.dense_key in panel.rows else []
    middle = float(np.median(measured)) if measured else np.nan
    known = {"x": 1.0, "speed": "1", "y": middle, "at": "all", "series": "dense", "said": with_error(middle, None)}
    dense = [known] if measured else []
    met = [*inside, *dense]
    best = [met[i] for i in front([p["x"] for p in met], [p["y"] for p in met])]
    heights = [point["y"] for point in (met or points)]
    title = f"{phase} speed, × dense in the same run"
    x = {"field": "x", "type": "quantitative", "scale": {"zero": False, "padding": 14}, "axis": {"title": title}}
    y = logarithmic(0.93 * min(heights), 1.15 * max(heights), "perplexity (log)")
    marked = {"x": x, "y": y, "tooltip": TOLD, "href": {"field": "run"}}
    beyond = [point | {"y": 1.15 * max(heights)} for point in points if point["beyond"]]
    layers: list[tuple[list[dict[str, Any]], Spec, Spec]] = [
        ([{"x": 1.0}], {"type": "rule", "style": "error"}, {"x": x}),
        (inside, {"type": "point", "filled": True, "size": 55, "opacity": 1}, marked | lines(looks, "color", "shape")),
        (
            dense,
            {"type": "point", "shape": STAR, "filled": True, "size": 70, "style": "star"},
            {"x": x, "y": y, "tooltip": TOLD},
        ),
        (
            beyond,
            {"type": "point", "shape": "triangle-up", "size": 90, "style": "beyond"},
            marked | lines(looks, "stroke"),
        ),
    ]
    drawn = [{"data": {"values": rows}, "mark": mark, "encoding": said} for rows, mark, said in layers if rows]
    if best:
        drawn.insert(1, band(best, steps="before", x=x, y=y))
    return {"title": lined(f"{panel.title}: {phase}"), "layer": drawn}
