"""The report's tables, as rows of words; a figure that a run lacks is left blank."""

from collections.abc import Iterator, Sequence
from math import isfinite

import pandas as pd

from svdexp.cells.choices import GROUPS, spoken
from svdexp.record import error_key
from svdexp.record import results as keys
from svdexp.report.collect import Missing, Record
from svdexp.report.frame import FULL, seconds_to_compress, targets
from svdexp.report.panels import perplexity_panels
from svdexp.report.protocol import differences
from svdexp.report.published import Figure, Published

Rows = list[list[str]]

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
                f"{seconds_to_compress(record):.0f}",
                "" if (peak := keys.PEAK_RSS.get(record)) is None else f"{peak / 1e9:.1f}",
            ]
        )
    return rows


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
        error = keys.PPL_STDERR.of(record).get(text)
        measured = _cell(keys.PPL.of(record)[text]) + (f" ± {_cell(error)}" if error is not None else "")
        cell = [_said(record, key) for key in ("label", *PARTS_SAID, "ratio")]
        said = [text, _protocol(record, text), measured, f"{figure.value:g}", figure.source, figure.protocol]
        rows.append([*cell, *said, *([] if alike else ["; ".join(differing)]), ", ".join(numbers)])
    return (rows, [known.footnotes[note] for note in notes]) if len(rows) > 1 else ([], [])


def _published_pairs(records: Sequence[Record], known: Published) -> Iterator[tuple[Record, str, Figure]]:
    """Every perplexity of a run with every published one of the same model, method, storage, ratio and text."""
    for record in records:
        if targets(record) != FULL:  # a ratio of other layers
            continue
        model, method, storage = (key.of(record) for key in (keys.MODEL, keys.METHOD, keys.STORAGE))
        for text in sorted(keys.PPL.among(record)):
            for figure in known.of(model, method, storage, keys.RATIO.of(record), keys.PPL.name, text):
                yield record, text, figure


def best_per_ratio(frame: pd.DataFrame) -> Rows:
    """Per model, text and ratio the run of least perplexity, what it lost against dense, and what it cost."""
    rows = [["model", "text", "ratio", "best", "perplexity", "× dense", "mean accuracy", "Δ to dense"]]
    rows[0] += ["size, MB", "decode, × dense", "seconds to compress", "peak RSS, GB"]
    for model, part in frame.groupby("label"):
        for panel in perplexity_panels(part):
            for ratio, runs in sorted(panel.rows.groupby("ratio"), reverse=True):
                run = runs.sort_values(panel.key).iloc[0].dropna()
                value, accuracy = run[panel.key], run.get("acc_mean")
                error = run.get(error_key(panel.key))
                dense, dense_accuracy = run.get(panel.dense_key), run.get("acc_mean_dense")
                rows.append(
                    [
                        *(str(model), panel.title, f"{ratio:g}", str(run["series"])),
                        _finite(value, ".4g") + (f" ± {error:.2g}" if error is not None and isfinite(value) else ""),
                        _finite(float(value) / float(dense), ".2f") if dense else "",
                        "" if accuracy is None else f"{accuracy:.3f}",
                        "" if accuracy is None or dense_accuracy is None else f"{accuracy - dense_accuracy:+.3f}",
                        f"{run['model_bytes'] / 1e6:,.0f}" if "model_bytes" in run else "",
                        f"{run['speedup/decode']:.2f}" if "speedup/decode" in run else "",
                        f"{run['seconds_to_compress']:,.0f}",
                        f"{run[keys.PEAK_RSS.name] / 1e9:.1f}" if keys.PEAK_RSS.name in run else "",
                    ]
                )
    return rows if len(rows) > 1 else []


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


def _finite(value: float, form: str) -> str:
    return f"{value:{form}}" if isfinite(value) else "not finite"


def _said(record: Record, key: str) -> str:
    return spoken(record, key) or "" if key in GROUPS else _cell(record.get(key))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
