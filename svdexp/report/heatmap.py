"""Which layer kept how much: rank by block and projection, one small map per run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svdexp.report.style import number
from svdexp.report.vega import Plot, Spec, lined

KEPT_DENSE = "#b9bdc2"


@dataclass(frozen=True)
class RankMap:
    """Ranks of one run's layers, (projections, blocks); nan where there is no layer.

    Attributes:
        projections, blocks: the names of rows and columns.
        ranks: mean over the layers of a cell (experts); a dense layer counts as full, or nan where `full` is.
        full: min(m, n); nan where an older run does not say.
        dense: whether all layers of a cell stayed dense.
    """

    projections: list[str]
    blocks: list[int]
    ranks: NDArray[np.float64]
    full: NDArray[np.float64]
    dense: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "RankMap":
        """From rows of layers.json; layers outside the blocks are left out."""
        cells: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["block"] is not None:
                cells[row["projection"], row["block"]].append(row)
        projections = list(dict.fromkeys(projection for projection, _ in cells))
        blocks = sorted({block for _, block in cells})
        shape = (len(projections), len(blocks))
        ranks, full, dense = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        for (projection, block), members in cells.items():
            at = projections.index(projection), blocks.index(block)
            sides = [min(row["m"], row["n"]) if "m" in row else np.nan for row in members]
            full[at] = np.mean(sides)
            ranks[at] = np.mean(
                [s if row["rank"] is None else row["rank"] for row, s in zip(members, sides, strict=True)]
            )
            dense[at] = all(row["rank"] is None for row in members)
        return cls(projections, blocks, ranks, full, dense)


def rank_maps(maps: Mapping[str, RankMap | None], columns: int) -> Plot:
    """Small maps in reading order under their titles; None leaves a place out.

    Colours are shares of the full rank where all runs say what that is, else ranks.
    """
    drawn = {title: found for title, found in maps.items() if found is not None and found.blocks}
    rows, across = max(len(m.projections) for m in drawn.values()), max(len(m.blocks) for m in drawn.values())
    shares = not any(
        np.isnan(m.full[~np.isnan(m.ranks)]).any() or np.isnan(m.full[m.dense]).any() for m in drawn.values()
    )
    top = 1.0 if shares else max(float(np.nanmax(m.ranks, initial=1)) for m in drawn.values())
    panels = [_panel(title, found, shares, top) for title, found in drawn.items()]
    scale = ("0", f"{top:g}", "share of the full rank" if shares else "rank")
    return Plot(panels, columns, scale=scale, width=max(150, 6 * across), height=14 * rows)


def uniform(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all matrices of one shape have one rank, or one more where bits were left over.

    Where the shape is not known, all of one projection.
    """
    ranks: dict[object, set[Any]] = defaultdict(set)
    for row in rows:
        shape = tuple(sorted((row["m"], row["n"]))) if {"m", "n"} <= row.keys() else row["projection"]
        ranks[shape].add(row["rank"])
    return all(len(found) == 1 or (None not in found and max(found) - min(found) <= 1) for found in ranks.values())


def _panel(title: str, found: RankMap, shares: bool, top: float) -> Spec:
    values = found.ranks / found.full if shares else found.ranks
    cells = [
        {
            **{"projection": projection, "block": block, "dense": bool(found.dense[i, j])},
            "value": 0.0 if found.dense[i, j] else float(values[i, j]),
            "kept": "dense" if found.dense[i, j] else _said(found.ranks[i, j], found.full[i, j]),
        }
        for i, projection in enumerate(found.projections)
        for j, block in enumerate(found.blocks)
        if found.dense[i, j] or not np.isnan(values[i, j])
    ]
    shown = found.blocks[:: -(-len(found.blocks) // 8)]
    axis = {"title": "block", "labelAngle": 0, "grid": False, "values": shown}
    place = {
        "x": {"field": "block", "type": "ordinal", "axis": axis},
        "y": {
            "field": "projection",
            "type": "nominal",
            "sort": found.projections,
            "axis": {"title": None, "grid": False},
        },
    }
    scale = {"scheme": "viridis", "domain": [0, top]}
    legend = {"title": "share of the full rank" if shares else "rank", "orient": "top", "direction": "horizontal"}
    colour = {
        "condition": {"test": "datum.dense", "value": KEPT_DENSE},
        **{"field": "value", "type": "quantitative", "scale": scale, "legend": legend},
    }
    told = [{"field": key, "title": key} for key in ("projection", "block", "kept")]
    return {
        "title": lined(title, 32),
        "data": {"values": cells},
        "mark": {"type": "rect"},
        # a seam between cells shows through where they end inside a pixel
        "encoding": {**place, "color": colour, "stroke": colour | {"legend": None}, "tooltip": told},
    }


def _said(rank: float, full: float) -> str:
    return number(rank) if np.isnan(full) else f"rank {number(rank)} of {number(full)}"
