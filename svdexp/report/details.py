"""One run as the page shows it, and as it is held against another: facts, settings, figures, layers."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from svdexp.record import Entry, Family, error_key, place
from svdexp.record import results as keys
from svdexp.report.collect import Record
from svdexp.report.spectra import spectra

# Figures that are measured though neither direction is the better one.
FOUND = (keys.ACHIEVED_RATIO, keys.ENERGY_LOST_MEAN, keys.DAMPED_LAYERS, keys.DAMPING_MAX, keys.RELOAD)
FIRST = (keys.PPL, keys.ACC, keys.ACC_NORM, keys.SPEED, keys.LATENCY, keys.BYTES, keys.PARAMS, keys.TARGET_BITS)
# What depends on the machine, on who shares it, and on what the cache had: none is better by it.
TOOK = (keys.SECONDS, keys.PEAK_RSS, keys.PEAK_RSS_BY_STAGE, keys.PEAK_DEVICE, keys.PEAK_DEVICE_BY_STAGE)
# What is told at the head of a run, or is of no use beside another run's.
AT_HEAD = (keys.COMMAND, keys.COMMIT, keys.RUN_DIR, keys.CELL, keys.TRACKER_URL)
TOLD = ("folder", "label", "written", *(key.name for key in AT_HEAD))


@dataclass(frozen=True)
class Facts:
    """Where a run comes from.

    Attributes:
        number: of the run.
        title: the line that it is of, and its ratio.
        model: its label.
        command, commit, written, device, folder: None where nobody noted it.
        link: the folder as the page's own folder sees it.
        tracker: the URL where a tracker shows it; None where there is none.
    """

    number: int
    title: str
    model: str
    command: str | None
    commit: str | None
    written: str | None
    device: str
    folder: str
    link: str
    tracker: str | None


def facts(record: Record, number: int, series: str, page: Path) -> Facts:
    """Of a run, for a page in the folder `page`."""
    ratio, words = keys.RATIO.get(record), keys.COMMAND.get(record)
    program = "svdexp" if keys.METHOD.name in record else "svdexp.evaluate"
    where = [keys.DEVICE.get(record), keys.DTYPE.get(record)]
    folder, tracker = str(record["folder"]), keys.TRACKER_URL.get(record)
    return Facts(
        number=number,
        title=series if ratio is None else f"{series} at {ratio:g}",
        model=str(record["label"]),
        command=None if words is None else f"python -m {program} {words}".strip(),
        commit=keys.COMMIT.get(record),
        written=str(record["written"]),
        device=", ".join(word for word in where if word),
        folder=folder,
        link=quote(os.path.relpath(folder, page), safe="/"),
        tracker=tracker if tracker and tracker.startswith(("https://", "http://")) else None,  # no program
    )


def as_data(record: Record, number: int, title: str, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain words and numbers for the page's programs; `layers` are the rows of the run's layers.json."""
    values = spectra(Path(str(record["folder"])), layers)
    return {
        **{"number": number, "title": title, "model": record["label"]},
        "settings": {key: str(value) for key, value in settings(record)},
        "figures": list(figures(record)),
        "layers": [
            _layer(row) | ({"spectrum": values[row["name"]]} if row["name"] in values else {}) for row in layers
        ],
    }


def settings(record: Record) -> Iterator[tuple[str, Any]]:
    """What was asked for and what it ran with: words, and the entries of tables, by key."""
    for key, value in record.items():
        found = place(key)
        if key in TOLD or (found and (_is_figure(found.entry) or found.of_dense)):
            continue
        if key not in (keys.GENERATION.name, keys.LEFT_DENSE.name):
            yield from _flat(key, value)


def figures(record: Record) -> Iterator[dict[str, Any]]:
    """Every measured number with its standard error, the dense model's, and which way is better; quality first."""
    places = {key: place(key) for key in record}
    order = [*FIRST, *FOUND, None, *TOOK]
    entries = {key: found.entry if found and found.entry in order else None for key, found in places.items()}
    for key in sorted(record, key=lambda key: order.index(entries[key])):
        value, found = record[key], places[key]
        if found is None or found.of_dense or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(found.entry, Family) and found.entry.is_support:
            continue
        if _is_figure(found.entry):
            dense = record.get(found.dense) if found.dense else None
            yield {
                **{"key": key, "value": _number(value), "dense": _number(dense), "unit": found.entry.unit or ""},
                "error": _error(record, key, value),
                "better": found.entry.better.value if found.entry.better and found.entry not in TOOK else "",
            }


def _error(record: Record, key: str, value: float) -> float | None:
    """A figure's standard error; of a speed half of what its repeats differ by."""
    head, _, phase = key.partition("/")
    if head == keys.SPEED.name:
        spread = keys.SPEED_SPREAD.of(record).get(phase)
        return None if spread is None else _number(value * spread / 2)
    return _number(record.get(error_key(key) or ""))


def _is_figure(entry: Entry[Any]) -> bool:
    return isinstance(entry, Family) or entry.better is not None or entry in FOUND


def _layer(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of layers.json in short: the share of the full rank, of the bits, and of the energy lost."""
    m, n, rank, lost = row.get("m"), row.get("n"), row["rank"], row.get("energy_lost")
    full = min(m, n) if m and n else None
    bits, dense_bits = row.get("bits"), row.get("bits_dense")
    return {
        **{"name": row["name"], "block": row["block"], "projection": row["projection"], "m": m, "n": n, "rank": rank},
        **({"form": row["form"]} if row.get("form") else {}),
        "share": (1.0 if rank is None else round(rank / full, 5)) if full else None,
        "bits": round(bits / dense_bits, 5) if bits and dense_bits else None,
        "lost": float(f"{lost:.4g}") if isinstance(lost, int | float) and isfinite(lost) else None,
    }


def _flat(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and key != keys.TASKS.name:
        return [pair for name, entry in value.items() if name != "curve" for pair in _flat(f"{key}.{name}", entry)]
    return [] if value is None or value in ([], {}) else [(key, value)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
