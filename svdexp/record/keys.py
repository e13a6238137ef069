"""A key of results.json, or a family of keys that differ behind a slash: how its values are read and written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar

from svdexp.record.kinds import Kind

T = TypeVar("T")
Record = Mapping[str, object]  # as it is read
Results = dict[str, object]  # as a run writes it


class Unit(StrEnum):
    """What a number counts."""

    bytes = "bytes"
    bits = "bits"
    seconds = "s"
    milliseconds = "ms"
    speed = "tokens/s"
    share = "share"
    tokens = "tokens"
    rows = "rows"
    layers = "layers"
    flops = "FLOP"


class Better(Enum):
    """Which of two figures is the better one."""

    lower = "lower"
    higher = "higher"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What one line of the declaration says.

    Attributes:
        name: the key, or what stands before the slash.
        kind: of the value.
        meaning: in a few words.
        unit: of the number; None for a mere number, and for what is none.
        better: None for what is no figure of merit.
        twin: whether a run has the dense model's value as well.
    """

    name: str
    kind: Kind[T]
    meaning: str
    unit: Unit | None = field(default=None, kw_only=True)
    better: Better | None = field(default=None, kw_only=True)
    twin: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Key(Entry[T]):
    """One key."""

    @property
    def dense(self) -> str:
        """Where the dense model's value stands."""
        return f"{self.name}_dense"

    def of(self, record: Record) -> T:
        """The value.

        Raises:
            KeyError: the record has none.
            TypeError: it is of another kind.
        """
        return self.kind.checked(self.name, record[self.name])

    def get(self, record: Record) -> T | None:
        """The value; None where there is none, or one of another kind."""
        value = record.get(self.name)
        return value if self.kind.fits(value) else None

    def get_dense(self, record: Record) -> T | None:
        """The same of the dense model."""
        value = record.get(self.dense)
        return value if self.kind.fits(value) else None

    def says(self, value: T) -> Results:
        """The key with its value."""
        return {self.name: value}


@dataclass(frozen=True)
class Family(Entry[T]):
    """Keys `NAME/MEMBER`.

    Attributes:
        member: what stands behind the slash.
        members: all that can; none where anything can.
        error: the family of these figures' standard errors.
        is_support: whether these numbers say how sure other figures are, or on how much they rest.
        one_measurement: the members are parts of one, whose dense twins are members, too: `decode_dense`.
    """

    member: str = field(kw_only=True)
    members: tuple[str, ...] = field(default=(), kw_only=True)
    error: "Family[Any] | None" = field(default=None, kw_only=True)
    is_support: bool = field(default=False, kw_only=True)
    one_measurement: bool = field(default=False, kw_only=True)

    def at(self, member: str) -> str:
        """The key of a member."""
        return f"{self.name}/{member}"

    def dense_at(self, member: str) -> str:
        """Where the dense model's value of a member stands."""
        return f"{self.name}/{member}_dense" if self.one_measurement else f"{self.name}_dense/{member}"

    def has(self, member: str) -> bool:
        """Whether there can be such a member."""
        return bool(member) and (not self.members or member in self.members)

    def among(self, keys: Iterable[str]) -> list[str]:
        """The members that stand among keys, in their order."""
        parted = (key.partition("/") for key in keys)
        return [tail for head, slash, tail in parted if slash and head == self.name and self.has(tail)]

    def of(self, record: Record) -> dict[str, T]:
        """By member the value; those of another kind are left out."""
        found = {member: record[self.at(member)] for member in self.among(record)}
        return {member: value for member, value in found.items() if self.kind.fits(value)}

    def of_dense(self, record: Record) -> dict[str, T]:
        """The same of the dense model, for members that the record has."""
        found = {member: record.get(self.dense_at(member)) for member in self.among(record)}
        return {member: value for member, value in found.items() if self.kind.fits(value)}

    def says(self, values: Mapping[str, T]) -> Results:
        """The keys with their values."""
        return {self.at(member): value for member, value in values.items()}
