"""Elastic storage: plain factors, and a checkpoint that loads at any lower ratio (svdexp/checkpoints/elastic.py)."""

from dataclasses import dataclass

from svdexp.storage.factors import FactorStorage


@dataclass(frozen=True)
class ElasticStorage(FactorStorage):
    """Prices and layers of plain factors; the run also hands on the components that it did not keep."""


def largest_rank(m: int, n: int) -> int:
    """The largest rank whose plain factors are smaller than the dense (m, n) matrix; 0 where none is."""
    return (m * n - 1) // (m + n)
