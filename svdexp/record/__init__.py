"""The record of a run: what results.json can hold, each key with its type, unit and meaning, and how it is read.

A leaf: it imports nothing of svdexp, so whoever reads or writes the record can.
"""

from svdexp.record.keys import Better, Entry, Family, Key, Record, Results, Unit
from svdexp.record.lookup import Place, as_dense, compared, dense_key, error_key, misfits, place, unit_of
from svdexp.record.results import RESULTS

__all__ = [
    "RESULTS",
    "Better",
    "Entry",
    "Family",
    "Key",
    "Place",
    "Record",
    "Results",
    "Unit",
    "as_dense",
    "compared",
    "dense_key",
    "error_key",
    "misfits",
    "place",
    "unit_of",
]
