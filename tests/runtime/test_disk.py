"""A folder is there whole or not at all, whatever happens while it is written."""

import os
import pickle
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.runtime.disk import UnwritableError, whole_file, whole_folder, write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Shelf
from svdexp.storage import FactorStorage
from tests.support.forks import in_a_process
from tests.support.shrunk import shrunk


def fill(folder: Path, content: str, error: BaseException | None = None) -> None:
    """Write one file, and fail with `error` after it."""
    with whole_folder(folder) as partial:
        (partial / "file").write_text(content)
        if error:
            raise error
        assert not folder.exists() or (folder / "file").read_text() == "old"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_and_is_replaced_whole(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "here", "old")
    fill(tmp_path / "deep" / "here", "new")
    assert (tmp_path / "deep" / "here" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["here"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException, before: bool) -> None:
    if before:
        fill(tmp_path / "here", "old")
    expected: Any = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        fill(tmp_path / "here", "half", error)
    if isinstance(error, OSError):
        assert "here cannot be written and is as it was before: No space left on device; all else" in str(caught.value)
    assert names(tmp_path) == ["here"] * before
    assert not before or (tmp_path / "here" / "file").read_text() == "old"


def test_a_failing_rename_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "here", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.suffix == ".partial" and target == tmp_path / "here" and self.name == "here":
            if target.exists():
                raise OSError(39, "Directory not empty")
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="Input/output error"):
        fill(tmp_path / "here", "new")
    assert names(tmp_path) == ["here"]
    assert (tmp_path / "here" / "file").read_text() == "old"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object]) -> None:
    assert in_a_process(work)() == -signal.SIGKILL


def half(folder: Path) -> None:
    """Write one file of two, and be killed."""
    with whole_folder(folder) as partial:
        (partial / "file").write_text("half")
        die()


def between(folder: Path) -> None:
    """Be killed when the old folder is away and the new one not yet in its place."""
    rename = Path.rename

    def deadly(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self == folder:
            die()
        return result

    Path.rename = deadly  # type: ignore[method-assign,assignment]
    fill(folder, "new")


def test_what_killed_processes_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    here = tmp_path / "here"
    killed(lambda: half(here))
    assert len(names(tmp_path)) == 1
    assert not here.exists()
    fill(here, "old")
    killed(lambda: half(here))
    killed(lambda: half(here.with_name("here.too")))  # another name, which begins alike
    killed(lambda: between(here))
    assert not here.exists()
    with pytest.raises(RuntimeError):
        fill(here, "half", RuntimeError())
    others, mine = names(tmp_path)
    assert others.startswith(".here.too.")
    assert mine == "here"
    assert (here / "file").read_text() == "old"
    fill(here.with_name("here.too"), "new")
    assert names(tmp_path) == ["here", "here.too"]
    write_atomically(here / "a.json", "[]")
    killed(lambda: interrupted_file(here / "a.json"))
    assert len(names(here)) == 3
    write_atomically(here / "a.json", "{}")
    assert names(here) == ["a.json", "file"]


def interrupted_file(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        die()


def test_a_writer_at_work_is_let_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "here") as partial:
        (partial / "file").write_text("mine")
        fill(tmp_path / "here", "old")
        assert in_a_process(lambda: fill(tmp_path / "here", "theirs too"))() == 0
        assert (partial / "file").read_text() == "mine"
    assert (tmp_path / "here" / "file").read_text() == "mine"
    assert names(tmp_path) == ["here"]


def test_many_processes_that_write_one_folder(tmp_path: Path) -> None:
    """Each puts its own there, whole; what is there at any moment is one writer's, and so is what is left."""
    here = tmp_path / "here"

    def write(word: str, times: int) -> None:
        for _ in range(times):
            with whole_folder(here) as partial:
                for number in range(5):
                    (partial / str(number)).write_text(word)

    waits = [in_a_process(lambda word=word: write(word, 25)) for word in ("a", "b", "c", "d")]  # type: ignore[misc]
    assert [wait() for wait in waits] == [0, 0, 0, 0]
    assert names(tmp_path) == ["here"]
    assert names(here) == ["0", "1", "2", "3", "4"]
    assert len({path.read_text() for path in here.iterdir()}) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    """Also of files that only their owner reads as they are made, as safetensors does."""
    before = os.umask(mask)
    try:
        with whole_folder(tmp_path / "here") as partial:
            (partial / "deep").mkdir()
            for path in (partial / "a.safetensors", partial / "deep" / "b.safetensors"):
                save_file({"x": torch.zeros(2)}, path)
        Shelf(tmp_path / "shelf").put("item", {"x": torch.zeros(2)})
        write_atomically(tmp_path / "a.json", "[]")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: mode for path in files}
    assert len(files) == 4


def test_the_sentence_survives_the_way_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError) as caught:
        write_atomically(tmp_path / "file" / "a.json", "[]")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert "Not a directory" in str(caught.value) or "File exists" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # files in memory may be mapped still


def test_a_full_disk(small_disk: Path, tokenizer: Any) -> None:
    """One tiny model fits, a second one beside it does not."""
    model, ranks = shrunk("gpt2", FactorStorage())
    checkpoint.save(model, tokenizer, small_disk / "checkpoint", ranks)
    before = {path.name: path.read_bytes() for path in (small_disk / "checkpoint").iterdir()}
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 60_000))
    with pytest.raises(UserError, match=r"checkpoint cannot be written and is as it was before: .*No space left"):
        checkpoint.save(model, tokenizer, small_disk / "checkpoint", ranks)
    assert names(small_disk) == ["ballast", "checkpoint"]
    assert {path.name: path.read_bytes() for path in (small_disk / "checkpoint").iterdir()} == before
    svdexp.load(small_disk / "checkpoint")
