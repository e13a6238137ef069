"""Identities and shelves."""

from pathlib import Path

import torch

from svdexp.cache import Cache, fingerprint, identity, write_atomically


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
