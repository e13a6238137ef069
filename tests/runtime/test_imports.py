"""The garbage collector around a command's imports."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from svdexp.runtime.imports import imports


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_imported_is_out_of_the_collectors_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_of_a_test.py").write_text("holds = [[]]")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_module_of_a_test", raising=False)
    with imports():
        import a_module_of_a_test  # type: ignore[import-not-found]

        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(kept is a_module_of_a_test.holds for kept in gc.get_objects())


def test_a_second_cell_leaves_its_garbage_to_the_collector() -> None:
    with imports():
        import svdexp.runtime.imports  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ImportError), imports():
            raise ImportError
        assert not gc.isenabled()
    finally:
        gc.enable()
