"""Storages are one abstract class and finals below it, and nothing else looks at which one it has."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest
import torch

import svdexp.storage
from svdexp.storage import NUMBER_BITS, FactorStorage, Storage

PACKAGE = Path(svdexp.storage.__file__).parents[1]


def below(kind: type) -> Iterator[type]:
    for found in kind.__subclasses__():
        yield from (found, *below(found))


@pytest.mark.parametrize(
    "kind", sorted(set(below(Storage)), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_every_storage_is_abstract_or_final(kind: type) -> None:
    assert inspect.isabstract(kind) or not kind.__subclasses__()
    if kind.__module__.startswith("svdexp."):
        assert inspect.isabstract(kind) or kind.__dict__.get("__final__"), "typing.final"
        assert is_dataclass(kind)


def test_all_of_them_are_found() -> None:
    exported = {value for name, value in vars(svdexp.storage).items() if name.endswith("Storage")} - {Storage}
    assert exported
    assert exported <= set(below(Storage))


def test_nothing_asks_for_a_storages_type() -> None:
    names = {kind.__name__ for kind in (Storage, *below(Storage))}
    asked = [
        f"{path}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
        if names & {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    ]
    assert not asked


@dataclass(frozen=True)
class Least(Storage):
    """What a storage must say."""

    def bits(self, rank: int, m: int, n: int) -> int:
        return rank * (m + n) * 8

    def layer(self, factors, bias, like, kept=None):  # type: ignore[no-untyped-def]
        return FactorStorage().layer(factors, bias, like)


def test_what_is_left_unsaid_leaves_a_matrix_dense() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Storage()  # type: ignore[abstract]
    storage = Least()
    assert storage.whole_bits(3, 5) == 15 * NUMBER_BITS
    assert storage.whole(torch.ones(3, 5), None) is None
    assert not storage.waits
    W = torch.ones(3, 5)
    assert storage.target(W)[0] is W
    assert storage.target(W)[1] is storage.split is None
