"""What truncation took from every block."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import pandas as pd

from svdexp.report.style import Style, number
from svdexp.report.vega import BLOCKS, Plot, Spec, lines, logarithmic

Layers = Mapping[str, list[dict[str, Any]]]  # a run's folder → the rows of its layers.json


def lost_by_block(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """By block, the mean share of the weighted energy that its layers lost; nothing where no run said."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["block"] is not None and row.get("energy_lost") is not None:
            found[row["block"]].append(row["energy_lost"])
    return {block: sum(values) / len(values) for block, values in sorted(found.items())}


def error_by_depth(rows: pd.DataFrame, layers: Layers, looks: Mapping[str, Style]) -> Plot | None:
    """One panel per ratio, one line per series; None where no run says what its layers lost."""
    panels: list[Spec] = []
    there: set[str] = set()
    for ratio in sorted(rows["ratio"].dropna().unique(), reverse=True):
        points: list[dict[str, Any]] = []
        for name, part in rows[rows["ratio"] == ratio].groupby("series"):
            run = part.iloc[-1]
            lost = lost_by_block(layers.get(run["folder"], []))
            points += [
                {"series": str(name), "x": block, "y": value, "said": number(value), "run": f"#run-{run['run']}"}
                for block, value in lost.items()
                if 0 < value < inf
            ]
        if points:
            panels.append(_panel(points, ratio, looks))
            there |= {point["series"] for point in points}
    return Plot(panels, 3, looks={name: look for name, look in looks.items() if name in there}) if panels else None


def _panel(points: list[dict[str, Any]], ratio: float, looks: Mapping[str, Style]) -> Spec:
    heights = [point["y"] for point in points]
    place = {
        "x": {"field": "x"} | BLOCKS,
        "y": logarithmic(0.8 * min(heights), 1.25 * max(heights), "share of the energy lost (log)"),
    }
    told = [
        {"field": "series", "title": "method"},
        {"field": "x", "title": "block"},
        {"field": "said", "title": "lost"},
    ]
    return {
        "title": f"kept ratio {ratio:g}",
        "data": {"values": points},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1}, "encoding": place | lines(looks, "color", "strokeDash")},
            {
                "mark": {"type": "point", "filled": True, "size": 22, "opacity": 1},
                "encoding": place | lines(looks, "color", "shape") | {"tooltip": told, "href": {"field": "run"}},
            },
        ],
    }
