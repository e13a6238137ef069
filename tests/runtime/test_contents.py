"""What a file holds."""

from pathlib import Path

import pytest

from svdexp.runtime import contents as module
from svdexp.runtime.contents import digest


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 2)
    file, notes = tmp_path / "file", tmp_path / "notes"
    file.write_text("abc")
    found = digest(file, notes)
    (note,) = notes.iterdir()
    assert note.read_text() == found
    note.write_text("known")
    assert digest(file, notes) == "known"
    file.write_text("abcd")
    assert digest(file, notes) not in (found, "known")
