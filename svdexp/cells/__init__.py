"""Cells: runs that are known by what changes their results, found again when finished, and never done twice at once."""

from svdexp.cells.cell import (
    FAILED,
    UNTRACKED,
    HeldError,
    OccupiedError,
    carry_out,
    is_finished,
    lacks_card,
    note_failure,
    said_by,
    state_of,
    wait_for,
)
from svdexp.cells.naming import register_names

__all__ = [
    "FAILED",
    "UNTRACKED",
    "HeldError",
    "OccupiedError",
    "carry_out",
    "is_finished",
    "lacks_card",
    "note_failure",
    "register_names",
    "said_by",
    "state_of",
    "wait_for",
]
