"""Which layer kept how much: rank by block and projection, one small map per run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from svdexp.report.style import LOOK, grid

KEPT_DENSE = "#d0d0d0"


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


@mpl.rc_context(LOOK)
def rank_maps(maps: Mapping[str, RankMap | None], columns: int) -> Figure:
    """Small maps in reading order under their titles; None leaves a place empty.

    Colours are shares of the full rank where all runs say what that is, else ranks.
    """
    drawn = [found for found in maps.values() if found is not None and found.blocks]
    rows, across = max(len(m.projections) for m in drawn), max(len(m.blocks) for m in drawn)
    figure, axes = grid(len(maps), columns, max(2.6, 0.075 * across + 1.3), 0.17 * rows + 0.55)
    shares = not any(np.isnan(m.full[~np.isnan(m.ranks)]).any() or np.isnan(m.full[m.dense]).any() for m in drawn)
    top = 1.0 if shares else max(float(np.nanmax(m.ranks, initial=1)) for m in drawn)
    mesh = None
    for index, (axis, (title, found)) in enumerate(zip(axes, maps.items(), strict=True)):
        if found is None or not found.blocks:
            axis.set_axis_off()
            continue
        axis.set_title(title, fontsize=8, loc="left")
        axis.grid(visible=False)
        values = found.ranks / found.full if shares else found.ranks
        box: Any = {"origin": "upper", "aspect": "auto", "interpolation": "nearest"}
        mesh = axis.imshow(np.where(found.dense, np.nan, values), cmap="viridis", vmin=0, vmax=top, **box)
        axis.imshow(np.where(found.dense, 1.0, np.nan), cmap=ListedColormap([KEPT_DENSE]), **box)
        first = all(other is None for other in list(maps.values())[index - index % columns : index])
        axis.set_yticks(range(len(found.projections)), found.projections if first else [], fontsize=6)
        step = max(1, -(-len(found.blocks) // 6))
        axis.set_xticks(range(0, len(found.blocks), step), list(map(str, found.blocks[::step])), fontsize=6)
        if index >= len(maps) - columns:
            axis.set_xlabel("block", fontsize=7)
    _explain(figure, mesh, "rank, share of the full rank" if shares else "rank")
    return figure


def _explain(figure: Figure, mesh: Any, label: str) -> None:
    with mpl.rc_context(LOOK):
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.6)
        bar = figure.colorbar(
            mesh, ax=figure.axes, location="top", shrink=min(1.0, 3.5 / width), aspect=30, pad=0.3 / height
        )
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        handle = Patch(facecolor=KEPT_DENSE, label="kept dense")
        figure.legend(handles=[handle], loc="outside lower left", fontsize=7)
