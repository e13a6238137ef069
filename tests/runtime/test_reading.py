"""JSON that cannot be read is a sentence, wherever it is read."""

from pathlib import Path

import pytest

from svdexp.checkpoints.checkpoint import is_compressed
from svdexp.data.instructions import parse_rows
from svdexp.evaluation.tasks.local import read_rows
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_json, read_object

DEEP = "[" * 100_000


def test_what_is_read() -> None:
    with pytest.raises(UserError, match=r"it is nested too deeply"):
        parse_rows(DEEP, "a.json", per_line=False)
    with pytest.raises(UserError, match=r"line 1 is nested too deeply"):
        parse_rows(DEEP, "a.jsonl", per_line=True)


def test_what_is_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(DEEP)
    with pytest.raises(UserError, match=r"results\.json cannot be read: it is nested too deeply"):
        read_json(path)
    with pytest.raises(UserError, match=r"line 1 is nested too deeply"):
        read_rows("arc_easy", path)
    (tmp_path / "config.json").write_text(DEEP)
    assert not is_compressed(tmp_path)
    objects = [("[]", "is not an object"), *((text, "it is not JSON") for text in ("{", "\xff", '{"a": "\\ud800"}'))]
    for text, sentence in objects:
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_object(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_object(tmp_path)
