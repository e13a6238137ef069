"""Speeds beside the dense model's: a difference inside what repeats of one measurement differ by is none."""

from collections.abc import Mapping

from svdexp.record.keys import Record
from svdexp.record.results import SPEED, SPEED_ROUTED, SPEED_SPREAD


def speedup(record: Record, phase: str) -> float | None:
    """The compressed model's speed over the dense one's; None where it was not measured."""
    return _over(SPEED.of(record), SPEED.of_dense(record), phase)


def speedup_over_routed(record: Record, phase: str) -> float | None:
    """The same over the dense model's by our routes: what low rank alone brings."""
    return _over(SPEED.of(record), SPEED_ROUTED.of(record), phase)


def spread(record: Record, phase: str) -> float:
    """What repeats of either model's measurement differ by, over their median; 0 where that is not known."""
    return max(found.get(phase, 0.0) for found in (SPEED_SPREAD.of(record), SPEED_SPREAD.of_dense(record)))


def even(record: Record, phase: str) -> bool:
    """Whether both models are as fast, as far as the measurement can tell."""
    factor = speedup(record, phase)
    return factor is not None and abs(factor - 1) <= spread(record, phase)


def _over(ours: Mapping[str, float], theirs: Mapping[str, float], phase: str) -> float | None:
    here, there = ours.get(phase), theirs.get(phase)
    return here / there if here and there else None
