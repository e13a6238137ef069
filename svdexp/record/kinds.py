"""What a value of results.json can be, as JSON gives it back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeGuard, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of values.

    Attributes:
        name: in words; what is of another kind is "no NAME".
        fits: whether a value is of this kind.
    """

    name: str
    fits: Callable[[object], TypeGuard[T]]

    def checked(self, key: str, value: object) -> T:
        """The value of a key.

        Raises:
            TypeError: it is of another kind.
        """
        if not self.fits(value):
            raise TypeError(f"{key} is no {self.name}")
        return value


class Trained(TypedDict):
    """One training of a run: the choice by its name, its options, tokens seen; of every look step, loss and score."""

    name: str
    options: Mapping[str, Any]
    tokens: int
    curve: list[list[float | None]]


Table = Mapping[str, Any]  # settings, each of its own type
Tables = Mapping[str, Table]


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that a column of a table holds; NaN and infinity are."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return whole or isinstance(value, float)


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, 2e9 included, as other programs write it."""
    return is_number(value) and (isinstance(value, int) or value.is_integer())


def is_word(value: object) -> TypeGuard[str]:
    """Whether it is a word."""
    return isinstance(value, str)


def is_table(value: object) -> TypeGuard[Table]:
    """Whether it has keys of its own."""
    return isinstance(value, dict)


def is_tables(value: object) -> TypeGuard[Tables]:
    """Whether it is a table of tables."""
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


def is_lists(value: object) -> TypeGuard[Mapping[str, list[str]]]:
    """Whether it is a table of lists."""
    return isinstance(value, dict) and all(isinstance(entry, list) for entry in value.values())


def is_trainings(value: object) -> TypeGuard[Mapping[str, Trained]]:
    """Whether it is a table of trainings, of any version: older ones wrote options as words."""
    return is_tables(value) and all(isinstance(entry.get("options"), dict | str) for entry in value.values())


def is_sayings(value: object) -> TypeGuard[list[Mapping[str, str]]]:
    """Whether it is a list of prompts with what followed them."""
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def maybe(kind: Kind[T]) -> Kind[T | None]:
    """The same, or null."""

    def fits(value: object) -> TypeGuard[T | None]:
        return value is None or kind.fits(value)

    return Kind(kind.name, fits)


NUMBER = Kind("number", is_number)
COUNT = Kind("number", is_count)
WORD = Kind("word", is_word)
TABLE = Kind("table", is_table)
TABLES = Kind("table of tables", is_tables)
LISTS = Kind("table of lists", is_lists)
TRAININGS = Kind("table of trainings", is_trainings)
SAYINGS = Kind("list of continuations", is_sayings)
