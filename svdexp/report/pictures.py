"""The report's pictures and tables of one model."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from svdexp.report.curves import CLIP, against_size
from svdexp.report.depth import Layers, error_by_depth
from svdexp.report.document import Picture, Section, file_name
from svdexp.report.grids import Beside, accuracies, perplexities
from svdexp.report.heatmap import RankMap, rank_maps, uniform
from svdexp.report.panels import accuracy_panels, perplexity_panels
from svdexp.report.pareto import speed_and_perplexity
from svdexp.report.style import Style
from svdexp.report.vega import Plot

LISTED = 8  # of the runs that a picture leaves out; the table has them all


def sections(
    model: str, rows: pd.DataFrame, layers: Layers, looks: Mapping[str, Style], beside: Beside
) -> Iterator[Section]:
    """One for every kind of picture or table that the runs of `model` have the figures for."""
    sized = rows[rows["model_bytes"].notna()] if "model_bytes" in rows else rows[:0]
    tables = list(perplexities(rows, beside))
    pictures = []
    if panels := perplexity_panels(sized):
        plot = against_size(panels, "perplexity (log)", looks, CLIP)
        words = (
            "Lower left is better; the band joins the runs that no other beats in both. "
            f"Axes end at {CLIP:g} times the dense model's perplexity.{_left_out(plot.notes)}"
        )
        pictures = [_picture("perplexity", model, words, plot)]
    if tables:
        yield Section("Perplexity", tables=tables, pictures=pictures, model=model)
    tables = list(accuracies(rows))
    pictures = []
    if panels := accuracy_panels(sized):
        plot = against_size(panels, "accuracy", looks)
        pictures = [
            _picture(
                "accuracy", model, "Upper left is better; the band joins the best. Bars are standard errors.", plot
            )
        ]
    if tables:
        yield Section("Accuracy", tables=tables, pictures=pictures, model=model)
    if speed := speed_and_perplexity(rows, looks):
        words = (
            "Lower right is better; the band joins the runs that no other beats in both. "
            f"Each speed is divided by that of the dense model in the same run.{_left_out(speed.notes)}"
        )
        yield Section("Speed", pictures=[_picture("speed", model, words, speed)], model=model)
    if maps := _maps(rows, layers):
        columns = rows["ratio"].nunique() if rows["series"].nunique() > 1 else 3
        words = "One map per method and kept ratio, where ranks are not uniform. Grey layers were kept dense."
        yield Section("Ranks", pictures=[_picture("ranks", model, words, rank_maps(maps, columns))], model=model)
    if depth := error_by_depth(rows, layers, looks):
        words = (
            "Mean over the block's layers of the share of ‖L W R‖² that truncation removed. Every method weighs with "
            "its own L and R, so the shapes of the lines compare, and heights only between methods of one weighting."
        )
        yield Section("Error by depth", pictures=[_picture("depth", model, words, depth)], model=model)


def _picture(kind: str, model: str, words: str, plot: Plot) -> Picture:
    return Picture(file_name(kind, model), words, plot)


def _maps(rows: pd.DataFrame, layers: Layers) -> dict[str, RankMap | None]:
    """A map for every series and ratio whose ranks are not uniform, of the latest run; ratios fall along a row."""
    found: dict[str, RankMap | None] = {}
    for name, part in rows.groupby("series"):
        for ratio in sorted(rows["ratio"].dropna().unique(), reverse=True):
            runs = part[part["ratio"] == ratio]
            ranked = layers.get(runs["folder"].iloc[-1], []) if len(runs) else []
            if ranked and not uniform(ranked):
                found[f"{name}, {ratio:g}"] = RankMap.of(ranked)
    return found if any(m is not None and m.blocks for m in found.values()) else {}


def _left_out(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    more = f"; and {len(notes) - LISTED} more" if len(notes) > LISTED else ""
    return f" Beyond: {'; '.join(notes[:LISTED])}{more}."
