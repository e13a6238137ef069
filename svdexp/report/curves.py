"""Figures against the model's size: perplexity and accuracies, one line per method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from svdexp.record import error_key
from svdexp.report.front import band, front
from svdexp.report.panels import Panel
from svdexp.report.style import STAR, Style, byte_unit, number, with_error
from svdexp.report.vega import Plot, Spec, lined, lines, logarithmic

# Perplexities beyond this multiple of the dense model's would squash all others.
CLIP = 100.0
TOLD = [{"field": key, "title": title} for key, title in (("series", "method"), ("at", "kept"), ("said", "figure"))]


def against_size(panels: Sequence[Panel], label: str, looks: Mapping[str, Style], clip: float | None = None) -> Plot:
    """The panels of one kind of figure, `label`, at most three beside each other.

    With `clip` their y axes are logarithmic and end at that multiple of the dense model's value, or of the least one
    where that is not known. What lies above is an open triangle at the edge, and named in the notes.
    """
    notes: list[str] = []
    drawn: list[Spec] = []
    for panel in panels:
        top = ceiling(panel, clip) if clip else np.inf
        drawn.append(_panel(panel, label, looks, top))
        beyond = panel.rows[panel.rows[panel.key] > top]
        notes += said_beyond(panel, beyond)
    there = {str(name) for panel in panels for name in panel.rows["series"]}
    return Plot(drawn, 3, notes, {name: style for name, style in looks.items() if name in there})


def ceiling(panel: Panel, clip: float) -> float:
    """Where the y axis ends at the latest, in finite numbers."""
    dense = finite(panel.rows[panel.dense_key]) if panel.dense_key in panel.rows else []
    return clip * min(dense or finite(panel.rows[panel.key]), default=1.0)


def finite(values: pd.Series) -> list[float]:
    """Those that can be drawn."""
    return [float(value) for value in values[np.isfinite(values)]]


def said_beyond(panel: Panel, rows: pd.DataFrame) -> list[str]:
    """Runs with what they have, in words, for what a picture leaves out."""
    values = zip(named(rows), rows[panel.key], strict=True)
    return [f"{panel.title}, {name}: {number(value)}" for name, value in values]


def named(rows: pd.DataFrame) -> list[str]:
    """Runs in words: `kron at 0.8`; what was measured as it is has no ratio."""
    return [
        f"{name} at {ratio:g}" if ratio == ratio else str(name)
        for name, ratio in zip(rows["series"], rows["ratio"], strict=True)
    ]


def _panel(panel: Panel, label: str, looks: Mapping[str, Style], top: float) -> Spec:
    unit, name = byte_unit(np.nanmax([*panel.rows["model_bytes_dense"], *panel.rows["model_bytes"]]))
    points = _points(panel, top, unit)
    dense = _dense(panel, unit)
    x = _size_axis([point["x"] for point in [*points, *dense]])
    heights = [point[key] for point in [*points, *dense] for key in ("y", "low", "high") if key in point]
    y = _y(heights, label, top)
    told = {"x": x | {"axis": None}, "y": y}
    coloured = told | lines(looks, "color")
    marked = {**coloured, **lines(looks, "shape"), "tooltip": TOLD, "href": {"field": "run"}}
    inside, beyond = [p for p in points if not p["beyond"]], [p for p in points if p["beyond"]]
    met, sign = [*inside, *dense], -1.0 if top == np.inf else 1.0  # more is better where nothing is clipped
    best = [met[i] for i in front([-p["x"] for p in met], [sign * p["y"] for p in met])]
    layers: list[Spec] = [
        band(best, steps="after", x=x | {"axis": None}, y=y),
        {
            "data": {"values": _means(panel, top, unit)},
            "mark": {"type": "line", "clip": True, "strokeWidth": 1.6},
            "encoding": {
                **coloured,
                **lines(looks, "strokeDash"),
                "x": x | {"axis": {"title": f"size, {name}", "tickCount": 6}},
            },
        },
        _of(dense[:1], "rule", "dense", {"y": y}),
        _of(dense, {"type": "point", "shape": STAR, "filled": True, "size": 70}, "star", {**told, "tooltip": TOLD}),
        _of(
            [point for point in inside if "low" in point],
            {"type": "rule", "clip": True, "opacity": 0.6},
            None,
            {**coloured, "y": y | {"field": "low"}, "y2": {"field": "high"}},
        ),
        _of(inside, {"type": "point", "filled": True, "size": 55, "opacity": 1}, None, marked),
        _of(
            beyond,
            {"type": "point", "shape": "triangle-up", "size": 90, "clip": False},
            "beyond",
            {**told, **lines(looks, "stroke"), "tooltip": TOLD, "href": {"field": "run"}},
        ),
    ]
    if above := _ratio_axis(panel.rows, unit, x):
        layers.append(above)
    return {
        "title": lined(panel.title),
        "layer": [layer for layer in layers if layer["data"]["values"]],
        "resolve": {"axis": {"x": "independent"}},
    }


def _of(rows: Sequence[Mapping[str, Any]], mark: Any, style: str | None, encoding: Spec) -> Spec:
    mark = {"type": mark} if isinstance(mark, str) else mark
    return {"data": {"values": list(rows)}, "mark": mark | ({"style": style} if style else {}), "encoding": encoding}


def _points(panel: Panel, top: float, unit: float) -> list[dict[str, Any]]:
    """One for every run; of those beyond the axis, which stand at its edge, the figure is said."""
    errors = panel.rows.get(error_key(panel.key) or "", pd.Series(np.nan, index=panel.rows.index))
    found = []
    for index, run in panel.rows.iterrows():
        value, error = float(run[panel.key]), float(errors[index])
        point = {
            **{"x": run["model_bytes"] / unit, "y": min(value, top), "beyond": bool(value > top)},
            **{"series": run["series"], "at": f"{run['ratio']:g}" if run["ratio"] == run["ratio"] else "as it is"},
            **{"said": with_error(value, error), "run": f"#run-{run['run']}"},
        }
        found.append(point | ({"low": value - error, "high": value + error} if np.isfinite(value + error) else {}))
    return found


def _means(panel: Panel, top: float, unit: float) -> list[dict[str, Any]]:
    """A point of every line through the mean of equal ratios."""
    part = panel.rows.assign(x=panel.rows["model_bytes"] / unit, y=panel.rows[panel.key].clip(upper=top))
    means = part.groupby(["series", "ratio"])[["x", "y"]].mean().reset_index().sort_values("x")
    return [dict(row) for row in means[["series", "x", "y"]].to_dict("records")]


def _dense(panel: Panel, unit: float) -> list[dict[str, Any]]:
    """A point for the dense model's figure; several where runs differ in number format."""
    if panel.dense_key not in panel.rows:
        return []
    known = panel.rows[np.isfinite(panel.rows[panel.dense_key]) & panel.rows["model_bytes_dense"].notna()]
    pairs = zip(known[panel.dense_key], known["model_bytes_dense"], strict=True)
    values = {f"{value:.3g}": (value, size) for value, size in pairs}
    return [
        {"x": size / unit, "y": value, "said": with_error(value, None), "at": "all", "series": "dense"}
        for value, size in values.values()
    ]


def _size_axis(sizes: Sequence[float]) -> Spec:
    pad = 0.04 * (max(sizes) - min(sizes)) or 0.05 * max(sizes)
    scale = {"domain": [min(sizes) - pad, max(sizes) + pad], "nice": False, "zero": False}
    return {"field": "x", "type": "quantitative", "scale": scale}


def _y(values: Sequence[float], label: str, top: float) -> Spec:
    if top == np.inf:
        axis = {"title": label, "tickCount": 5}
        return {"field": "y", "type": "quantitative", "scale": {"zero": False, "padding": 12}, "axis": axis}
    bottom = 0.93 * min((value for value in values if value > 0), default=top)
    return logarithmic(bottom, max(1.1 * min(top, max(values)), 1.2 * bottom), label)


def _ratio_axis(rows: pd.DataFrame, unit: float, x: Spec) -> Spec | None:
    """The kept ratio at the top, where one scale holds for all runs."""
    rows = rows[rows["ratio"].notna()]
    dense, targets = rows["model_bytes_dense"], rows["target_bytes_dense"]
    if not len(rows) or dense.nunique() > 1 or targets.nunique() > 1 or rows["compresses"].nunique() > 1:
        return None
    rest, share = float(dense.iloc[0] - targets.iloc[0]), float(targets.iloc[0])
    ratios = sorted({round(ratio, 2) for ratio in rows["ratio"]} | {1.0})
    axis = {
        **{"orient": "top", "grid": False, "title": "kept ratio", "format": ".2~f", "labelOverlap": "greedy"},
        "values": [(ratio * share + rest) / unit for ratio in ratios],
        "labelExpr": f"format((datum.value * {unit!r} - {rest!r}) / {share!r}, '.2~f')",
    }
    mark = {"type": "point", "opacity": 0, "tooltip": None}
    return _of([{"x": float(dense.iloc[0]) / unit}], mark, None, {"x": x | {"axis": axis}})
