"""Identities and shelves."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache, Shelf, fingerprint, identity
from tests.support.forks import in_a_process


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


def test_only_what_shares_memory_is_copied_on_the_way_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a block's components would take as much as they do."""
    copied, clone = [], torch.Tensor.clone

    def seen(tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        copied.append(tuple(tensor.shape))
        return clone(tensor, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", seen)
    shared = torch.rand(4)
    tensors = {"own": torch.rand(2, 5), "one": shared, "other": shared, "turned": torch.rand(3, 2).T}
    tensors["part"] = torch.rand(9)[:7]
    shelf = Cache(tmp_path).shelf("stage")
    shelf.put("item", tensors)
    assert copied == [(4,), (4,), (2, 3), (7,)]
    found = shelf.get("item")
    assert found is not None
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are its user's alone."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_another_user(work: Callable[[], object]) -> int:
    """Do the work in a process without root's powers; the exit code."""

    def powerless() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_a_process(powerless)()


def test_a_cache_without_write_rights_is_read_and_nothing_else(open_folder: Path) -> None:
    ours = Cache(open_folder / "cache").shelf("stage", model="m")
    ours.put("item", {"x": torch.arange(4.0)})
    ours.put("secret", {"x": torch.arange(3.0)})
    assert ours.folder is not None
    (ours.folder / "secret.safetensors").chmod(0)
    folders = [open_folder / "cache", ours.folder.parent, ours.folder]
    for folder in folders:
        folder.chmod(0o555)
    before = {path: path.read_bytes() for path in open_folder.rglob("*") if path.is_file() and os.geteuid() == 0}

    def work() -> None:
        assert not Cache(open_folder / "cache").may_write()
        assert not Cache(open_folder / "cache" / "deep" / "er").may_write()
        for model in ("m", "another"):
            shelf = Cache(open_folder / "cache").shelf("stage", model=model)
            found = shelf.get("item")
            assert (found is not None) == (model == "m")
            for item in ("new", "secret"):
                assert item not in shelf
                assert shelf.get(item) is None
                shelf.put(item, {"x": torch.ones(1)})
                assert item in shelf
                assert torch.equal(shelf.remember(item, dict)["x"], torch.ones(1))

    assert as_another_user(work) == 0
    for folder in folders:
        folder.chmod(0o755)
    assert Cache(open_folder / "cache").may_write()
    assert Cache(open_folder / "another" / "one").may_write()
    assert not Cache().may_write()
    assert {path for path in open_folder.rglob("*") if path.is_file()} == {
        ours.folder / name for name in ("identity.json", "item.safetensors", "secret.safetensors")
    }
    assert all(path.read_bytes() == data for path, data in before.items())


def test_what_cannot_be_opened_is_not_damaged(tmp_path: Path) -> None:
    """Also with no descriptor left, of which safetensors says that there is no such file."""
    shelf = Shelf(tmp_path)
    shelf.put("item", {"x": torch.arange(4.0)})

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with suppress(OSError):
            while True:
                os.open(os.devnull, os.O_RDONLY)
        with pytest.raises(
            UserError, match=r"item\.safetensors cannot be read and stays as it is: Too many open files"
        ):
            shelf.get("item")

    assert in_a_process(work)() == 0
    assert shelf.get("item") is not None


def test_a_full_disk_ends_in_one_sentence_and_keeps_what_was_finished(tmp_path: Path) -> None:
    shelf = Cache(tmp_path).shelf("stage", model="m")
    shelf.put("item", {"x": torch.arange(4.0)})
    before = sorted(tmp_path.rglob("*"))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(
            UserError, match=r"^cache: .*large\.safetensors cannot be written: File too large; .*cache="
        ):
            shelf.put("large", {"x": torch.zeros(1000)})

    assert in_a_process(work)() == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert shelf.get("item") is not None


def test_what_is_read_holds_no_file_in_memory(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.put("item", {"x": torch.arange(4.0), "large": torch.zeros(10_000)})
    found = shelf.get("item")
    assert found is not None
    assert "item.safetensors" not in Path("/proc/self/maps").read_text()


def test_remember_computes_once(tmp_path: Path) -> None:
    for shelf in (Shelf(), Shelf(tmp_path)):
        calls: list[int] = []

        def compute(calls: list[int] = calls) -> dict[str, torch.Tensor]:
            calls.append(1)
            return {"x": torch.ones(1)}

        assert torch.equal(shelf.remember("item", compute)["x"], shelf.remember("item", compute)["x"])
        assert len(calls) == 1
