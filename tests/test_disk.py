"""A folder is there whole or not at all, whatever happens while it is written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import svdexp
from svdexp.disk import whole_folder
from svdexp.errors import UserError
from svdexp.models import checkpoint
from svdexp.storage import FactorStorage
from tests.models.shrunk import shrunk


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
        assert str(caught.value).endswith("here cannot be written and is as it was before: No space left on device")
    assert names(tmp_path) == ["here"] * before
    assert not before or (tmp_path / "here" / "file").read_text() == "old"


def test_a_failing_rename_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "here", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="Input/output error"):
        fill(tmp_path / "here", "new")
    assert names(tmp_path) == ["here"]
    assert (tmp_path / "here" / "file").read_text() == "old"


def test_a_process_that_died_half_way_is_made_up_for(tmp_path: Path) -> None:
    fill(tmp_path / "here", "old")
    (tmp_path / "here").rename(tmp_path / ".here.previous")
    (tmp_path / ".here.partial").mkdir()
    with pytest.raises(RuntimeError):
        fill(tmp_path / "here", "half", RuntimeError())
    assert names(tmp_path) == ["here"]
    assert (tmp_path / "here" / "file").read_text() == "old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


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
