"""The report's tables, as rows of words; a figure that a run lacks is left blank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import pandas as pd

from svdexp.cells.choices import GROUPS, spoken
from svdexp.record import error_key
from svdexp.record import results as keys
from svdexp.record.speeds import even, speedup
from svdexp.report.collect import Missing, Record
from svdexp.report.frame import FULL, MEAN, MEAN_DENSE, seconds_to_compress, targets
from svdexp.report.panels import perplexity_panels
from svdexp.report.protocol import differences
from svdexp.report.published import Figure, Published
from svdexp.report.style import byte_unit

Rows = list[list[str]]


@dataclass(frozen=True)
class Table:
    """Rows of words, the heading first.

    Attributes:
        title: what it shows.
        strong: row and column of what stands in bold.
        words: how to read it.
        series: by row the line that it is of; empty where rows are of none.
        runs: by row the number of its run; None where rows are of none.
    """

    title: str
    rows: Rows
    strong: frozenset[tuple[int, int]] = frozenset()
    words: str = ""
    series: Sequence[str] = ()
    runs: Sequence[int | None] = ()


FIXED = (
    "label",
    *(key.name for key in (keys.METHOD, keys.WEIGHTING, keys.ALLOCATION, keys.STORAGE)),
    *(key.name for key in (keys.RATIO, keys.ACHIEVED_RATIO)),
)
# The tables of published figures: their titles, and whether they hold what was measured alike.
PUBLISHED = {
    "Published figures of the same cells": True,
    "Published figures of the same cells, measured otherwise here": False,
}
SEVEN = "zeroshot7"  # the mean of the tasks of keys.AVERAGE, in published.yaml
PARTS_SAID = ("method", "allocation", "storage")


def every_run(records: Sequence[Record]) -> Rows:
    """One row a run."""
    texts = sorted({text for record in records for text in keys.PPL.among(record)})
    rows = [["model", *FIXED[1:], *map(keys.PPL.at, texts), "seconds to compress", "peak RSS, GB"]]
    for record in records:
        rows.append(
            [
                *(_said(record, key) for key in FIXED),
                *(_cell(keys.PPL.of(record).get(text)) for text in texts),
                f"{seconds_to_compress(record):.0f}" if keys.METHOD.name in record else "",
                "" if (peak := keys.PEAK_RSS.get(record)) is None else f"{peak / 1e9:.1f}",
            ]
        )
    return rows


def all_runs(records: Sequence[Record], frame: pd.DataFrame) -> Table:
    """The same with what else one looks for; a run's number is that of its row in the tidy `frame`."""
    heading, *rows = every_run(records)
    sizes = frame.get("model_bytes", pd.Series(float("nan"), index=frame.index))
    unit, name = byte_unit(sizes.max()) if sizes.notna().any() else (1.0, "B")
    more: dict[str, list[str]] = {
        f"size, {name}": [_of_frame(size / unit, ".3g") for size in sizes],
        "mean accuracy": [_of_frame(value, ".3f") for value in _column(frame, MEAN)],
        "decode, × dense": [_speedup(record) for record in records],
        "device": [keys.DEVICE.get(record) or "" for record in records],
        "written": [str(record.get("written") or "") for record in records],
        "commit": [(keys.COMMIT.get(record) or "")[:9] for record in records],
    }
    more = {head: values for head, values in more.items() if any(values)}
    whole = [["run", *heading, *more]]
    for number, (series, (model, method, *row)) in enumerate(zip(frame["series"], rows, strict=True)):
        said = [str(number + 1), model, method or str(series), *row]
        whole.append([*said, *(values[number] for values in more.values())])
    lines = ["", *map(str, frame["series"])]
    return Table("All runs", whole, series=lines, runs=[None, *range(1, len(rows) + 1)])


def _speedup(record: Record) -> str:
    """Of decoding, with `even` where the measurement cannot tell the models apart."""
    factor = speedup(record, keys.DECODE)
    return "" if factor is None else f"{factor:.2f}{', even' if even(record, keys.DECODE) else ''}"


def _column(frame: pd.DataFrame, key: str) -> "pd.Series[float]":
    return frame.get(key, pd.Series(float("nan"), index=frame.index))


def _of_frame(value: float, form: str) -> str:
    return f"{value:{form}}" if isfinite(value) else ""


def beside_published(records: Sequence[Record], known: Published, *, alike: bool) -> tuple[Rows, list[str]]:
    """What was measured beside what papers print of the same cell, and footnotes; both empty where there is none.

    Either the figures that were measured alike, as far as it is known, or those that were not, with what differs.
    """
    rows = [["model", *PARTS_SAID, "ratio", "text", "measured by", "measured", "published", "source", "protocol there"]]
    rows[0] += ["notes"] if alike else ["otherwise here", "notes"]
    notes: dict[str, int] = {}
    for record, text, figure in _published_pairs(records, known):
        differing = differences(record, figure)
        if alike == bool(differing):
            continue
        numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in figure.footnotes]
        is_accuracy = figure.metric == keys.ACC.name
        values, errors = (keys.ACC, keys.ACC_STDERR) if is_accuracy else (keys.PPL, keys.PPL_STDERR)
        member = keys.AVERAGE if is_accuracy else text
        error = errors.of(record).get(member)
        measured = _cell(values.of(record)[member]) + (f" ± {_cell(error)}" if error is not None else "")
        cell = [_said(record, key) for key in ("label", *PARTS_SAID, "ratio")]
        said = [text, _protocol(record, text), measured, f"{figure.value:g}", figure.source, figure.protocol]
        rows.append([*cell, *said, *([] if alike else ["; ".join(differing)]), ", ".join(numbers)])
    return (rows, [known.footnotes[note] for note in notes]) if len(rows) > 1 else ([], [])


def published_alike(records: Sequence[Record], known: Published) -> dict[tuple[int, str], list[Figure]]:
    """By number of a run and text the published figures of its cell that were measured alike, as far as it is known."""
    numbers = {str(record["folder"]): number for number, record in enumerate(records, 1)}
    found: dict[tuple[int, str], list[Figure]] = {}
    for record, text, figure in _published_pairs(records, known):
        if not differences(record, figure):
            found.setdefault((numbers[str(record["folder"])], text), []).append(figure)
    return found


def _published_pairs(records: Sequence[Record], known: Published) -> Iterator[tuple[Record, str, Figure]]:
    """Every perplexity of a run with every published one of the same model, method, storage, ratio and text; so the
    mean of the seven tasks.
    """
    for record in records:
        if targets(record) != FULL:  # a ratio of other layers
            continue
        model, method, storage = (key.of(record) for key in (keys.MODEL, keys.METHOD, keys.STORAGE))
        for text in sorted(keys.PPL.among(record)):
            for figure in known.of(model, method, storage, keys.RATIO.of(record), keys.PPL.name, text):
                yield record, text, figure
        if keys.AVERAGE in keys.ACC.of(record):
            for figure in known.of(model, method, storage, keys.RATIO.of(record), keys.ACC.name, SEVEN):
                yield record, SEVEN, figure


def best_per_ratio(frame: pd.DataFrame) -> Rows:
    """Per model, text and ratio the run of least perplexity, what it lost against dense, and what it cost."""
    rows = [["model", "text", "ratio", "best", "perplexity", "× dense", "mean accuracy", "Δ to dense"]]
    unit, called = byte_unit(_column(frame, "model_bytes").max())
    rows[0] += [f"size, {called}", "decode, × dense", "seconds to compress", "peak RSS, GB"]
    for model, part in frame.groupby("label"):
        for panel in perplexity_panels(part):
            for ratio, runs in sorted(panel.rows.groupby("ratio"), reverse=True):
                run = runs.sort_values(panel.key).iloc[0].dropna()
                value, accuracy = run[panel.key], run.get(MEAN)
                error = run.get(error_key(panel.key))
                dense, dense_accuracy = run.get(panel.dense_key), run.get(MEAN_DENSE)
                rows.append(
                    [
                        *(str(model), panel.title, f"{ratio:g}", str(run["series"])),
                        _finite(value, ".4g") + (f" ± {error:.2g}" if error is not None and isfinite(value) else ""),
                        _times(float(value), float(dense)) if dense else "",
                        "" if accuracy is None else f"{accuracy:.3f}",
                        "" if accuracy is None or dense_accuracy is None else f"{accuracy - dense_accuracy:+.3f}",
                        f"{run['model_bytes'] / unit:,.4g}" if "model_bytes" in run else "",
                        _speedup(run.to_dict()),
                        f"{run['seconds_to_compress']:,.0f}",
                        f"{run[keys.PEAK_RSS.name] / 1e9:.1f}" if keys.PEAK_RSS.name in run else "",
                    ]
                )
    return without_blanks(rows) if len(rows) > 1 else []


def without_blanks(rows: Rows) -> Rows:
    """The rows without columns of which all but the heading is blank."""
    kept = [at for at in range(len(rows[0])) if any(row[at] for row in rows[1:])]
    return [[row[at] for at in kept] for row in rows]


def without_results(missing: Sequence[Missing]) -> Rows:
    """One row for each cell that left no results, or none that can be read."""
    if not missing:
        return []
    return [["folder", "what is known"], *([str(cell.folder), " ".join(cell.reason.split())] for cell in missing)]


def _protocol(record: Record, text: str) -> str:
    """How a perplexity was measured, in few words; runs of older versions do not say."""
    found = (keys.PROTOCOL.get(record) or {}).get(text)
    if found is None:
        return ""
    special = f", special tokens {found['special_tokens']}" if "special_tokens" in found else ""
    said = {key: found.get(key, "?") for key in ("preset", "split", "cut", "windows", "seq_len", "bos", "tokens")}
    return "{preset}: {split}, {cut}, {windows} × {seq_len}, BOS {bos}{special}, {tokens} tokens".format(
        **said, special=special
    )


def _times(value: float, dense: float) -> str:
    times = value / dense
    return _finite(times, ".2f" if times < 1000 else ".2g")


def _finite(value: float, form: str) -> str:
    return f"{value:{form}}" if isfinite(value) else "not finite"


def _said(record: Record, key: str) -> str:
    return spoken(record, key) or "" if key in GROUPS else _cell(record.get(key))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
