"""The report's pictures of one model."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from svdexp.report.curves import CLIP, against_size
from svdexp.report.depth import Layers, error_by_depth
from svdexp.report.document import Picture, Section
from svdexp.report.heatmap import RankMap, rank_maps
from svdexp.report.panels import accuracy_panels, perplexity_panels
from svdexp.report.pareto import speed_and_perplexity
from svdexp.report.style import Style, png

LONGEST = 100  # characters of a model's name in a file's
LISTED = 8  # of the runs that a picture leaves out; the table has them all


def sections(model: str, rows: pd.DataFrame, layers: Layers, looks: Mapping[str, Style]) -> Iterator[Section]:
    """One for every kind of picture that the runs of `model` have the figures for."""
    sized = rows[rows["model_bytes"].notna()] if "model_bytes" in rows else rows[:0]
    if panels := perplexity_panels(sized):
        plot = against_size(panels, "perplexity (log)", looks, CLIP)
        words = (
            f"Lower left is better. The axes end at {CLIP:g} times the dense model's perplexity.{_left_out(plot.notes)}"
        )
        yield _section(f"Perplexity against size: {model}", "perplexity", words, png(plot.figure))
    if panels := accuracy_panels(sized):
        figure = against_size(panels, "accuracy", looks).figure
        yield _section(f"Accuracy against size: {model}", "accuracy", "Upper left is better.", png(figure))
    if speed := speed_and_perplexity(rows, looks):
        words = (
            "Lower right is better; the grey line joins the runs that no other beats in both, with their kept ratios. "
            f"Each speed is divided by that of the dense model in the same run.{_left_out(speed.notes)}"
        )
        yield _section(f"Speed against perplexity: {model}", "speed", words, png(speed.figure))
    if maps := _maps(rows, layers):
        columns = rows["ratio"].nunique() if rows["series"].nunique() > 1 else 3
        words = "One map per method and kept ratio."
        yield _section(f"Ranks: {model}", "ranks", words, png(rank_maps(maps, columns)))
    if depth := error_by_depth(rows, layers, looks):
        words = (
            "Mean over the block's layers of the share of ‖L W R‖² that truncation removed. Every method weighs with "
            "its own L and R, so the shapes of the lines compare, and heights only between methods of one weighting."
        )
        yield _section(f"Error by depth: {model}", "depth", words, png(depth))


def _section(title: str, kind: str, words: str, content: bytes) -> Section:
    return Section(title, pictures=[Picture(file_name(kind, title.partition(": ")[2]), words, content)])


def file_name(kind: str, model: str) -> str:
    """`ranks-llama-7b.png`; a model that no file can be called after gets digits, so that no two share a file."""
    word = re.sub(r"[^\w.-]+", "_", model, flags=re.ASCII)[:LONGEST]
    digits = "" if word == model else f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"{kind}-{word}{digits}.png"


def _maps(rows: pd.DataFrame, layers: Layers) -> dict[str, RankMap | None]:
    """A map for every series and ratio, the latest run of each; ratios fall from left to right."""
    found: dict[str, RankMap | None] = {}
    for name, part in rows.groupby("series"):
        for ratio in sorted(rows["ratio"].unique(), reverse=True):
            runs = part[part["ratio"] == ratio]
            found[f"{name}, {ratio:g}"] = RankMap.of(layers[runs["folder"].iloc[-1]]) if len(runs) else None
    return found if any(m is not None and m.blocks for m in found.values()) else {}


def _left_out(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    more = f"; and {len(notes) - LISTED} more" if len(notes) > LISTED else ""
    return f" Beyond: {'; '.join(notes[:LISTED])}{more}."
