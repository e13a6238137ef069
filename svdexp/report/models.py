"""Which records are of one model: its weights decide, not its name."""

from collections.abc import Mapping, Sequence
from typing import Any

TELLING = ("model_path", "model_revision", "dtype")
UNKNOWN = "weights not recorded"


def labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Per record its model's name; where one name has several weights, with what tells them apart.

    That is the path, the revision or the number format, else the beginning of the weights' fingerprint. Older records
    have none: beside others of the name they stand apart, because nobody knows.
    """
    found: dict[str, dict[str | None, list[Mapping[str, Any]]]] = {}
    for record in records:
        found.setdefault(record["model"], {}).setdefault(record.get("model_fingerprint"), []).append(record)
    said = {name: _apart(of_weights) for name, of_weights in found.items()}
    names = [said[record["model"]][record.get("model_fingerprint")] for record in records]
    return [
        f"{record['model']} ({words})" if words else record["model"]
        for record, words in zip(records, names, strict=True)
    ]


def _apart(of_weights: Mapping[str | None, Sequence[Mapping[str, Any]]]) -> dict[str | None, str]:
    """By fingerprint the words that no other one has; none where there is but one."""
    if len(of_weights) == 1:
        return dict.fromkeys(of_weights, "")
    known = {weights: rows for weights, rows in of_weights.items() if weights is not None}
    seen = {key: {weights: {str(row.get(key)) for row in rows} for weights, rows in known.items()} for key in TELLING}
    telling = [
        key
        for key, values in seen.items()
        if all(len(value) == 1 for value in values.values()) and len(set().union(*values.values())) > 1
    ]
    words = {weights: ", ".join(next(iter(seen[key][weights])) for key in telling) for weights in known}
    if len(set(words.values())) < len(words):
        words = {weights: f"{said}, {weights[:8]}".removeprefix(", ") for weights, said in words.items()}
    return {weights: UNKNOWN if weights is None else words[weights] for weights in of_weights}
