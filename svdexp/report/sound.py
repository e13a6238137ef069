"""What is wrong with a record that something else than a run wrote, or that was damaged: one reason, in words."""

from collections.abc import Mapping
from typing import Any

from svdexp.record import place
from svdexp.record import results as keys
from svdexp.record.keys import Entry
from svdexp.record.kinds import is_number

NAMES = (keys.MODEL, keys.METHOD, keys.STORAGE)
# What the report reads, or puts in a column, of a record; another value of another kind is let alone.
READ = (
    *(keys.WEIGHTING, keys.ALLOCATION, keys.UPDATE, keys.TRAVERSAL, keys.MODEL_FINGERPRINT, *keys.PARTS.values()),
    *(keys.ACHIEVED_RATIO, keys.TARGET_BITS, keys.PARAMS, keys.BYTES, keys.FILE_BYTES, keys.FLOPS_PER_TOKEN),
    *(keys.PPL, keys.PPL_STDERR, keys.PPL_TOKENS, keys.ACC, keys.ACC_STDERR, keys.ACC_NORM, keys.ACC_NORM_STDERR),
    *(keys.ACC_ROWS, keys.SPEED, keys.SPEED_SPREAD, keys.SECONDS),
    *(keys.PEAK_RSS, keys.PEAK_RSS_BY_STAGE, keys.PEAK_DEVICE, keys.PEAK_DEVICE_BY_STAGE),
)
SIZES = (keys.TARGET_BITS, keys.PARAMS, keys.BYTES, keys.FILE_BYTES)  # which are positive
# Keys whose value has keys of its own, and what the report reads of these.
TABLES: Mapping[str, Mapping[str, type]] = {
    keys.CALIBRATION.name: {"text": str, "samples": int, "seq_len": int},
    keys.EVAL.name: {},
    keys.TARGETS.name: {},
}

PROTOCOL: Mapping[str, type] = {
    **dict.fromkeys(("preset", "split", "cut", "bos"), str),
    **dict.fromkeys(("windows", "seq_len", "tokens"), int),
}
WORDS = ("name", "projection")  # of a row of layers.json; the rest are numbers, but for a form


def fault(record: Any) -> str | None:
    """What keeps a record out of the report; None of a sound one."""
    if not isinstance(record, dict):
        return "it is no table"
    for name in NAMES:
        if name.get(record) is None:
            return f"{name.name} is no {name.kind.name}"
    ratio = keys.RATIO.get(record)
    if ratio is None or not 0 < ratio <= 1:
        return "ratio is no kept fraction"
    return _figures_fault(record)


def evaluation_fault(record: Mapping[str, Any]) -> str | None:
    """The same of a model that was measured as it is."""
    return "model is no word" if keys.MODEL.get(record) is None else _figures_fault(record)


def _figures_fault(record: Mapping[str, Any]) -> str | None:
    for key, value in record.items():
        entry = _read(key)
        if entry and not entry.kind.fits(value):
            return f"{key} is no {entry.kind.name}"
        if entry in SIZES and not value > 0:
            return f"{key} is no size"
    for key, inside in TABLES.items():
        if key in record and not _has(record[key], inside):
            return f"{key} is not what a run leaves"
    for key, sound in {keys.PROTOCOL.name: _is_protocol, keys.TRAINING.name: _is_training}.items():
        entries = record.get(key, {})
        if not isinstance(entries, dict) or not all(map(sound, entries.values())):
            return f"{key} is not what a run leaves"
    return None


def layers_fault(rows: Any) -> str | None:
    """The same of the rows of layers.json."""
    if not isinstance(rows, list):
        return "it is no list"
    for row in rows:
        if not _has(row, dict.fromkeys(WORDS, str)) or not {"block", "rank"} <= row.keys():
            return "a layer is not what a run leaves"
        if not all(
            value is None or is_number(value) or (key == "form" and isinstance(value, str))
            for key, value in row.items()
            if key not in WORDS
        ):
            return f"{row['name']} has words where numbers belong"
    return None


def _read(key: str) -> Entry[Any] | None:
    """The declaration of a key that the report reads; None of another."""
    found = place(key)
    return found.entry if found and found.entry in READ else None


def _is_protocol(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry[key], kind) for key, kind in PROTOCOL.items() if key in entry
    )


def _is_training(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("options"), dict | str)


def _has(table: Any, inside: Mapping[str, type]) -> bool:
    return isinstance(table, dict) and all(isinstance(table.get(key), kind) for key, kind in inside.items())
