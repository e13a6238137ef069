"""From a key as it stands in results.json to its declaration."""

from dataclasses import dataclass
from typing import Any

from svdexp.record.keys import Family, Key, Record, Results, Unit
from svdexp.record.results import ENTRIES, SPEED_ROUTED

DENSE = "_dense"
KEYS: dict[str, Key[Any]] = {entry.name: entry for entry in ENTRIES if isinstance(entry, Key)}
FAMILIES: dict[str, Family[Any]] = {entry.name: entry for entry in ENTRIES if isinstance(entry, Family)}


@dataclass(frozen=True)
class Place:
    """What a key stands for.

    Attributes:
        entry: its declaration.
        dense: where the dense model's value stands; None where there is none, as for a dense model's own key.
        error: where the figure's standard error stands; None where it has none.
        of_dense: whether the key is the dense model's own.
    """

    entry: Key[Any] | Family[Any]
    dense: str | None = None
    error: str | None = None
    of_dense: bool = False


def place(key: str) -> Place | None:
    """The declaration of a key; None where it has none."""
    head, slash, member = key.partition("/")
    return _of_family(head, member) if slash else _of_key(key)


def dense_key(key: str) -> str:
    """Where the dense model's value of a figure stands.

    `ppl/TEXT` → `ppl_dense/TEXT`, `params` → `params_dense`, and, because prefill and decode are parts of one
    measurement, `tokens_per_second/decode` → `tokens_per_second/decode_dense`.

    Raises:
        KeyError: it is no figure that dense models have.
    """
    found = place(key)
    if found is None or found.dense is None:
        raise KeyError(key)
    return found.dense


def as_dense(figures: Record) -> Results:
    """A dense model's figures under the keys that they have beside a compressed one's.

    Raises:
        KeyError: one of them is no figure that dense models have.
    """
    alone = SPEED_ROUTED.among(figures)  # which no compressed model has
    kept = {SPEED_ROUTED.at(phase): figures[SPEED_ROUTED.at(phase)] for phase in alone}
    return kept | {dense_key(key): value for key, value in figures.items() if key not in kept}


def compared(record: Record) -> dict[str, str]:
    """By key of a figure where the dense model's stands, for figures that the record has of both models."""
    found = {key: at for key in record if (at := place(key)) and at.dense in record}
    return {
        key: str(at.dense) for key, at in found.items() if not (isinstance(at.entry, Family) and at.entry.is_support)
    }


def error_key(key: str) -> str | None:
    """Where the standard error of a figure stands; None where it has none."""
    found = place(key)
    return found.error if found else None


def unit_of(key: str) -> Unit | None:
    """What the number of a key counts."""
    found = place(key)
    return found.entry.unit if found else None


def misfits(record: Record) -> list[str]:
    """What is wrong with a record that a run wrote, by key: nothing may be there that is not declared."""
    places = {key: place(key) for key in record}
    unknown = [f"{key} is not declared" for key, found in places.items() if found is None]
    return unknown + [
        f"{key} is no {found.entry.kind.name}"
        for key, found in places.items()
        if found and not found.entry.kind.fits(record[key])
    ]


def _of_key(key: str) -> Place | None:
    if entry := KEYS.get(key):
        return Place(entry, entry.dense if entry.twin else None)
    entry = KEYS.get(key.removesuffix(DENSE))
    return Place(entry, of_dense=True) if entry and entry.twin and entry.dense == key else None


def _of_family(head: str, member: str) -> Place | None:
    key = f"{head}/{member}"
    if (entry := FAMILIES.get(head)) and entry.has(member):
        error = entry.error.at(member) if entry.error else None
        return Place(entry, entry.dense_at(member) if entry.twin else None, error)
    entry = FAMILIES.get(head.removesuffix(DENSE))
    member = member if head.endswith(DENSE) else member.removesuffix(DENSE)
    if entry and entry.twin and entry.has(member) and entry.dense_at(member) == key:
        return Place(entry, error=entry.error.dense_at(member) if entry.error else None, of_dense=True)
    return None
