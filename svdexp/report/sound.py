"""What is wrong with a record that something else than a run wrote, or that was damaged: one reason, in words."""

from collections.abc import Mapping
from math import inf
from typing import Any

NAMES = ("model", "method", "storage")
MAYBE = ("weighting", "allocation", "update", "traversal", "model_fingerprint")  # a word, or null
# Keys of results.json that begin so have a number.
FIGURES = (
    *("ratio", "achieved_ratio", "target_bits", "params", "bytes", "seconds/", "peak_", "flops_per_token"),
    *("ppl", "acc/", "acc_", "tokens_per_second/", "speed_spread/"),
)
SIZES = ("target_bits", "params", "bytes")  # of these, it is positive
# Keys whose value has keys of its own, and what the report reads of these.
TABLES: Mapping[str, Mapping[str, type]] = {
    "calibration": {"text": str, "samples": int, "seq_len": int},
    "eval": {},
    "targets": {},
}

PROTOCOL: Mapping[str, type] = {
    **dict.fromkeys(("preset", "split", "cut", "bos"), str),
    **dict.fromkeys(("windows", "seq_len", "tokens"), int),
}
WORDS = ("name", "projection")  # of a row of layers.json; the rest are numbers


def fault(record: Any) -> str | None:
    """What keeps a record out of the report; None of a sound one."""
    if not isinstance(record, dict):
        return "it is no table"
    for name in NAMES:
        if not isinstance(record.get(name), str):
            return f"{name} is no word"
    if not _is_number(record.get("ratio")) or not 0 < record["ratio"] <= 1:
        return "ratio is no kept fraction"
    for key, value in record.items():
        if key.startswith(FIGURES) and not _is_number(value):
            return f"{key} is no number"
        if key.startswith(SIZES) and not 0 < value < inf:
            return f"{key} is no size"
        if key in MAYBE and not isinstance(value, str | None):
            return f"{key} is no word"
        if key.endswith("_options") and not isinstance(value, dict | None):
            return f"{key} is no table"
    for key, inside in TABLES.items():
        if key in record and not _has(record[key], inside):
            return f"{key} is not what a run leaves"
    for key, sound in {"protocol": _is_protocol, "training": _is_training}.items():
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
            value is None or _is_number(value) for key, value in row.items() if key not in ("name", "projection")
        ):
            return f"{row['name']} has words where numbers belong"
    return None


def _is_protocol(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry[key], kind) for key, kind in PROTOCOL.items() if key in entry
    )


def _is_training(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("options"), dict | str)


def _has(table: Any, inside: Mapping[str, type]) -> bool:
    return isinstance(table, dict) and all(isinstance(table.get(key), kind) for key, kind in inside.items())


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return whole or isinstance(value, float)
