"""What was measured, as tables of pandas that print their figures as a run's console does."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from svdexp.record import error_key, place
from svdexp.record.keys import Family
from svdexp.tracking.console import number


class Figures(pd.Series):  # type: ignore[misc]
    """Of one model, by their keys in results.json. What is made of it by pandas is a plain Series."""

    def __repr__(self) -> str:
        words = {key: number(key, value) for key, value in self.items()}
        return str(pd.Series(words, dtype=object).to_string())


class Comparison(pd.DataFrame):  # type: ignore[misc]
    """A row a figure. What is made of it by pandas is a plain DataFrame."""

    def __repr__(self) -> str:
        return str(self._in_words().to_string())

    def _repr_html_(self) -> str:
        return str(self._in_words().to_html())

    def _in_words(self) -> pd.DataFrame:
        rows = {key: {column: _word(key, column, row[column]) for column in self} for key, row in self.iterrows()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self))


def side_by_side(figures: Mapping[str, Any], dense: Mapping[str, Any]) -> Comparison:
    """A row a figure: the dense model's, the compressed one's, the second over the first, and its standard error.

    What there is none of has no column.
    """
    rows = {key: value for key, value in figures.items() if (found := place(key)) and not _is_support(found.entry)}
    table = pd.DataFrame({"dense": pd.Series(dense, dtype=float).reindex(list(rows)), "compressed": pd.Series(rows)})
    table["factor"] = table["compressed"] / table["dense"]
    table["stderr"] = [figures.get(error_key(key) or "") for key in rows]
    return Comparison(table.astype(float).dropna(axis="columns", how="all"))


def _word(key: str, column: str, value: float) -> str:
    """An entry of a row; few figures have a standard error, or perhaps a dense model's beside them."""
    if pd.isna(value) and column != "compressed":
        return ""
    return f"{value:.3f}" if column == "factor" else number(key, value)


def _is_support(entry: object) -> bool:
    return isinstance(entry, Family) and entry.is_support
