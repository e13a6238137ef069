"""The tables that papers print: method × ratio for every text, and accuracies by task; the best in bold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log

import numpy as np
import pandas as pd

from svdexp.record import error_key
from svdexp.record.keys import Better
from svdexp.record.results import ACC, ACC_ROWS, ACC_STDERR, AVERAGE, PPL_STDERR
from svdexp.report.frame import MEAN, MEAN_DENSE, MEAN_ERROR, MEAN_ERROR_DENSE
from svdexp.report.panels import Panel, accuracy_panels, asked_alike, perplexity_panels
from svdexp.report.published import Figure
from svdexp.report.style import byte_unit, with_error
from svdexp.report.tables import Table

BOLD = "Bold: the best of a column, and all whose ± range meets its: these the figures do not tell apart."
# Of a run's number the published figures of its cell that were measured alike, by the text.
Beside = Mapping[tuple[int, str], Sequence[Figure]]


@dataclass(frozen=True)
class Value:
    """A figure and its standard error; of several runs their mean, and the larger of deviation and error."""

    value: float
    error: float
    runs: int = 1

    @classmethod
    def of(cls, values: Sequence[float], errors: Sequence[float]) -> "Value":
        """Of runs of one cell; an error that is not known is 0."""
        said = max((error for error in errors if isfinite(error)), default=0.0)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 and all(map(isfinite, values)) else 0.0
        return cls(float(np.mean(values)), max(said, spread), len(values))

    def __str__(self) -> str:
        return with_error(self.value, self.error) + (f" ({self.runs} runs)" if self.runs > 1 else "")


def best(values: Mapping[int, Value], better: Better) -> set[int]:
    """The key of the best value, and of those whose range meets the best one's.

    What is better lower is a perplexity, and its error one of its logarithm: 300 ± 400 does not reach down to 20.
    """
    known = {key: value for key, value in values.items() if isfinite(value.value)}
    if not known:
        return set()
    if better is Better.lower:
        known = {key: Value(-log(value.value), value.error / value.value) for key, value in known.items()}
    top = max(known.values(), key=lambda value: value.value)
    return {key for key, value in known.items() if top.value - value.value <= value.error + top.error + 1e-12}


def perplexities(rows: pd.DataFrame, beside: Beside) -> Iterator[Table]:
    """Method × ratio, one table for every text and way of measuring it."""
    for panel in perplexity_panels(rows):
        text = panel.key.partition("/")[2]
        published = {run: figures for (run, of), figures in beside.items() if of == text}
        yield _grid(panel, Better.lower, PPL_STDERR.dense_at(text), published)


def accuracies(rows: pd.DataFrame) -> Iterator[Table]:
    """Method × ratio of the mean, then every task, one of each for every choice of tasks and number of rows."""
    for panel in accuracy_panels(rows):
        if panel.key == MEAN:
            yield _grid(panel, Better.higher, MEAN_ERROR_DENSE, {})
    yield from _by_task(rows)


def _grid(panel: Panel, better: Better, dense_error: str, published: Mapping[int, Sequence[Figure]]) -> Table:
    error = MEAN_ERROR if panel.key == MEAN else error_key(panel.key) or ""
    ratios = sorted(panel.rows["ratio"].dropna().unique(), reverse=True)
    rivals = panel.rows[panel.rows["ratio"].isna()]
    rows = [["method", *(f"{ratio:g}" for ratio in ratios), *(["at its own size"] if len(rivals) else [])]]
    series = [""]
    if dense := _value(panel.rows, panel.dense_key, dense_error):
        rows.append(["dense", *([str(replace(dense, runs=1))] * len(ratios))])
        series.append("")
    strong: set[tuple[int, int]] = set()
    found: list[dict[int, Value]] = [{} for _ in ratios]
    for name, part in panel.rows[panel.rows["ratio"].notna()].groupby("series"):
        cells = [_value(part[part["ratio"] == ratio], panel.key, error) for ratio in ratios]
        for column, cell in enumerate(cells):
            found[column] |= {len(rows): cell} if cell else {}
        rows.append([str(name), *("" if cell is None else str(cell) for cell in cells)])
        series.append(str(name))
        for source, by_ratio in _printed(part, published).items():
            rows.append([f"{name}, {source}", *(by_ratio.get(ratio, "") for ratio in ratios)])
            series.append(str(name))
    for column, values in enumerate(found, 1):
        strong |= {(row, column) for row in best(values, better)}
    for name, part in rivals.groupby("series"):
        size = part["model_bytes"].iloc[0] if "model_bytes" in part else np.nan
        unit, called = byte_unit(size)
        said = f" at {size / unit:.3g} {called}" if size == size else ""
        rows.append([str(name), *([""] * len(ratios)), f"{_value(part, panel.key, error)}{said}"])
        series.append(str(name))
    width = len(rows[0])
    rows = [row + [""] * (width - len(row)) for row in rows]
    kind = "Perplexity on" if better is Better.lower else "Accuracy,"
    return Table(f"{kind} {panel.title}", rows, frozenset(strong), BOLD, tuple(series))


def _value(rows: pd.DataFrame, key: str, error: str) -> Value | None:
    if key not in rows or not rows[key].notna().any():
        return None
    there = rows[rows[key].notna()]
    errors = there[error].fillna(0.0) if error in there else pd.Series(0.0, index=there.index)
    return Value.of(list(there[key]), list(errors))


def _printed(part: pd.DataFrame, published: Mapping[int, Sequence[Figure]]) -> dict[str, dict[float, str]]:
    """By source what papers print of the cells of a line that were measured alike."""
    found: dict[str, dict[float, str]] = {}
    for run, ratio in zip(part["run"], part["ratio"], strict=True):
        for figure in published.get(run, ()):
            found.setdefault(figure.source, {})[ratio] = f"{figure.value:g}"
    return found


def _by_task(rows: pd.DataFrame) -> Iterator[Table]:
    """Every task of runs that were asked the same tasks and as many rows, by ratio."""
    for part, several in asked_alike(rows):
        first = part.iloc[0]
        groups = first.get("groups")
        names = str(first["tasks"]).split(", ")
        pooled = str(groups).split(", ") if isinstance(groups, str) else []
        counts = {task: first.get(ACC_ROWS.at(task)) for task in names}
        heads = [f"{task} ({rows:,.0f})" if rows == rows and rows else task for task, rows in counts.items()]
        heads += [f"{group}, pooled" for group in pooled]
        yield _tasks(part, [*names, *pooled], heads, len(names) > 1, f": {first['asked']}" if several else "")


def _tasks(part: pd.DataFrame, tasks: Sequence[str], heads: Sequence[str], averaged: bool, which: str) -> Table:
    """Columns of `tasks`, groups of them included, under `heads`, and their mean where it is `averaged`."""
    columns = [(ACC.at(task), ACC_STDERR.at(task)) for task in tasks]
    dense_columns = [(ACC.dense_at(task), ACC_STDERR.dense_at(task)) for task in tasks]
    if averaged:
        columns.append((MEAN, MEAN_ERROR))
        dense_columns.append((MEAN_DENSE, MEAN_ERROR_DENSE))
    rows = [["ratio", "method", *heads, *([AVERAGE] if averaged else [])]]
    dense = [_value(part, key, error) for key, error in dense_columns]
    series, strong = [""], set()
    if any(dense):
        rows.append(["1", "dense", *("" if cell is None else str(replace(cell, runs=1)) for cell in dense)])
        series.append("")
    for ratio, runs in sorted(part.fillna({"ratio": -inf}).groupby("ratio"), reverse=True):
        found: list[dict[int, Value]] = [{} for _ in columns]
        for name, those in runs.groupby("series"):
            cells = [_value(those, key, error) for key, error in columns]
            for column, cell in enumerate(cells):
                found[column] |= {len(rows): cell} if cell else {}
            said = f"{ratio:g}" if isfinite(ratio) else ""
            rows.append([said, str(name), *("" if cell is None else str(cell) for cell in cells)])
            series.append(str(name))
        if isfinite(ratio):  # what is as it is has no peers of its size
            strong |= {(row, at) for at, values in enumerate(found, 2) for row in best(values, Better.higher)}
    words = f"{BOLD} Columns compare within a ratio; rows asked stand behind a task's name."
    return Table(f"Accuracy by task{which}", rows, frozenset(strong), words, tuple(series))
