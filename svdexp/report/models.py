"""Which records are of one model: its weights decide, not its name."""

from collections.abc import Mapping, Sequence

from svdexp.record import Record
from svdexp.record import results as keys

TELLING = tuple(key.name for key in (keys.MODEL_PATH, keys.MODEL_REVISION, keys.DTYPE))
UNKNOWN = "weights not recorded"


def labels(records: Sequence[Record]) -> list[str]:
    """Per record its model's name; where one name has several weights, with what tells them apart.

    That is the path, the revision or the number format, else the beginning of the weights' fingerprint. Older records
    have none: beside others of the name they stand apart, because nobody knows.
    """
    found: dict[str, dict[str | None, list[Record]]] = {}
    for record in records:
        found.setdefault(keys.MODEL.of(record), {}).setdefault(keys.MODEL_FINGERPRINT.get(record), []).append(record)
    said = {name: _apart(of_weights) for name, of_weights in found.items()}
    names = [keys.MODEL.of(record) for record in records]
    words = [said[name][keys.MODEL_FINGERPRINT.get(record)] for name, record in zip(names, records, strict=True)]
    return [f"{name} ({more})" if more else name for name, more in zip(names, words, strict=True)]


def relatives(evaluations: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """Per evaluation the label of the labelled records whose dense weights it measured, or that alone have its name."""
    of_weights = {keys.MODEL_FINGERPRINT.get(record): str(record["label"]) for record in records}
    of_weights.pop(None, None)
    of_name: dict[str, set[str]] = {}
    for record in records:
        of_name.setdefault(keys.MODEL.of(record), set()).add(str(record["label"]))
    found = []
    for record in evaluations:
        name = keys.MODEL.of(record)
        named = of_name.get(name, set())
        found.append(of_weights.get(keys.MODEL_FINGERPRINT.get(record)) or (min(named) if len(named) == 1 else name))
    return found


def _apart(of_weights: Mapping[str | None, Sequence[Record]]) -> dict[str | None, str]:
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
