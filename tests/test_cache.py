"""Identities and shelves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from svdexp.cache import Cache, Shelf, fingerprint, identity
from svdexp.disk import write_atomically


def test_identity_depends_on_every_ingredient_and_not_on_order() -> None:
    assert identity(a=1, b="x") == identity(b="x", a=1)
    assert len({identity(a=1), identity(a=2), identity(b=1), identity(a="1")}) == 4


def test_fingerprint_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(4.0)
    different = [
        {"x": x},
        {"y": x},
        {"x": x.double()},
        {"x": x.view(2, 2)},
        {"x": x + 1},
        {"x": x.bfloat16()},
    ]
    assert len({fingerprint(tensors) for tensors in different}) == len(different)
    assert fingerprint({"x": x.view(2, 2).T.contiguous().T}) == fingerprint({"x": x.view(2, 2)})


def test_shelf_returns_what_was_put_and_notes_its_ingredients(tmp_path: Path) -> None:
    for cache in (Cache(), Cache(tmp_path)):
        shelf = cache.shelf("stage", model="m")
        assert shelf.get("item") is None
        view = torch.arange(6.0).view(2, 3).T
        shelf.put("item", {"a": view, "b": view})
        found = shelf.get("item")
        assert found is not None
        assert torch.equal(found["a"], view)
        assert torch.equal(found["b"], view)
    (note,) = tmp_path.glob("stage/*/identity.json")
    assert '"model": "m"' in note.read_text()


def test_files_appear_whole_and_leave_nothing_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "a.json", "{}")
    write_atomically(tmp_path / "deep" / "a.json", "[]")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_text() == "[]"


def flip_the_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip_the_last_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b"not a safetensors file"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["one bit", "cut short", "foreign", "empty"],
)
def test_a_damaged_item_is_named_and_computed_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(tmp_path)
    shelf.put("item", {"x": torch.arange(4.0)})
    damage(tmp_path / "item.safetensors")
    found = shelf.remember("item", lambda: {"x": torch.arange(4.0)})
    assert torch.equal(found["x"], torch.arange(4.0))
    assert "item.safetensors is damaged" in caplog.text
    intact = shelf.get("item")
    assert intact is not None
    assert torch.equal(intact["x"], torch.arange(4.0))


def test_remember_computes_once(tmp_path: Path) -> None:
    for shelf in (Shelf(), Shelf(tmp_path)):
        calls: list[int] = []

        def compute(calls: list[int] = calls) -> dict[str, torch.Tensor]:
            calls.append(1)
            return {"x": torch.ones(1)}

        assert torch.equal(shelf.remember("item", compute)["x"], shelf.remember("item", compute)["x"])
        assert len(calls) == 1
