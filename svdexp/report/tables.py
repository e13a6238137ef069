"""The report's tables, as rows of words; a figure that a run lacks is left blank."""

from collections.abc import Sequence

import pandas as pd

from svdexp.published import Published
from svdexp.report.collect import Missing, Record
from svdexp.report.frame import FULL, SECONDS
from svdexp.report.panels import perplexity_panels

Rows = list[list[str]]

FIXED = ("model", "method", "weighting", "allocation", "storage", "ratio", "achieved_ratio")


def every_run(records: Sequence[Record]) -> Rows:
    """One row a run."""
    texts = sorted({key for record in records for key in record if key.startswith("ppl/")})
    rows = [[*FIXED, *texts, "seconds to compress", "peak RSS, GB"]]
    for record in records:
        seconds = sum(record.get(f"seconds/{stage}", 0.0) for stage in SECONDS)
        rows.append(
            [
                *(_cell(record.get(key)) for key in FIXED),
                *(_cell(record.get(key)) for key in texts),
                f"{seconds:.0f}",
                f"{record['peak_rss_bytes'] / 1e9:.1f}",
            ]
        )
    return rows


def beside_published(records: Sequence[Record], known: Published) -> tuple[Rows, list[str]]:
    """What was measured beside what papers print of the same cell, and footnotes; both empty where there is none."""
    heading = ["model", "method", "allocation", "storage", "ratio", "text", "measured by", "measured", "published"]
    rows = [[*heading, "source", "protocol there", "notes"]]
    notes: dict[str, int] = {}
    for record in records:
        if record.get("targets", FULL) != FULL:  # a ratio of other layers
            continue
        cell = [str(record.get(key) or "") for key in ("model", "method", "allocation", "storage")]
        for key in sorted(key for key in record if key.startswith("ppl/")):
            text = key.removeprefix("ppl/")
            for figure in known.of(cell[0], cell[1], cell[3], record["ratio"], "ppl", text):
                numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in figure.footnotes]
                measured = f"{_cell(record[key])} ± {_cell(record.get(f'ppl_stderr/{text}'))}"
                said = [_cell(record["ratio"]), text, _protocol(record, text), measured, f"{figure.value:g}"]
                rows.append([*cell, *said, figure.source, figure.protocol, ", ".join(numbers)])
    return (rows, [known.footnotes[note] for note in notes]) if len(rows) > 1 else ([], [])


def best_per_ratio(frame: pd.DataFrame) -> Rows:
    """Per model, text and ratio the run of least perplexity, what it lost against dense, and what it cost."""
    rows = [["model", "text", "ratio", "best", "perplexity", "× dense", "mean accuracy", "Δ to dense"]]
    rows[0] += ["size, MB", "decode, × dense", "seconds to compress", "peak RSS, GB"]
    for model, part in frame.groupby("model"):
        for panel in perplexity_panels(part):
            for ratio, runs in sorted(panel.rows.groupby("ratio"), reverse=True):
                run = runs.sort_values(panel.key).iloc[0].dropna()
                value, accuracy = run[panel.key], run.get("acc_mean")
                error = run.get(panel.key.replace("ppl/", "ppl_stderr/"))
                dense, dense_accuracy = run.get(panel.dense_key), run.get("acc_mean_dense")
                rows.append(
                    [
                        *(str(model), panel.title, f"{ratio:g}", str(run["series"])),
                        f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else ""),
                        "" if dense is None else f"{value / dense:.2f}",
                        "" if accuracy is None else f"{accuracy:.3f}",
                        "" if accuracy is None or dense_accuracy is None else f"{accuracy - dense_accuracy:+.3f}",
                        f"{run['model_bytes'] / 1e6:,.0f}" if "model_bytes" in run else "",
                        f"{run['speedup/decode']:.2f}" if "speedup/decode" in run else "",
                        f"{run['seconds_to_compress']:,.0f}",
                        f"{run['peak_rss_bytes'] / 1e9:.1f}",
                    ]
                )
    return rows if len(rows) > 1 else []


def without_results(missing: Sequence[Missing]) -> Rows:
    """One row for each cell that left no results."""
    if not missing:
        return []
    return [["folder", "what is known"], *([str(cell.folder), " ".join(cell.reason.split())] for cell in missing)]


def _protocol(record: Record, text: str) -> str:
    """How a perplexity was measured, in few words; runs of older versions do not say."""
    found = record.get("protocol", {}).get(text)
    if found is None:
        return ""
    special = f", special tokens {found['special_tokens']}" if "special_tokens" in found else ""
    return (
        f"{found['preset']}: {found['split']}, {found['cut']}, {found['windows']} × {found['seq_len']}, "
        f"BOS {found['bos']}{special}, {found['tokens']} tokens"
    )


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
