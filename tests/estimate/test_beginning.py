"""What comes before the first stage: seconds that were measured, of Python's start and of reading the model."""

import sys
import time
from pathlib import Path

import pytest
import torch

from svdexp.estimate import beginning as module
from svdexp.estimate.beginning import CONVERSION, beginning, reading_speed
from svdexp.estimate.devices import SHEETS, published_machine
from svdexp.models.work import Work
from svdexp.runtime.imports import _age_at_first as age
from svdexp.runtime.imports import imports, seconds_to_start


def seconds(files: list[Path], header: float | None = None) -> dict[str, float]:
    return {row.name: row.work.elapsed for row in beginning(files, header, 7.0)}


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    """3 and 1 MB."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, size in zip(files, (3_000_000, 1_000_000), strict=True):
        file.write_bytes(bytes(size))
    return files


def test_weights_are_read_at_a_measured_speed(weights: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_to_start", lambda: None)
    monkeypatch.setattr(module, "reading_speed", lambda path: 2e6)
    assert seconds(weights) == {"load": 2.0}
    assert seconds([]) == {}
    assert seconds([], header=3.0) == {"load": 3.0 * CONVERSION}
    assert [row.bytes for row in beginning(weights, None, 7.0)] == [7.0]


def test_the_speed_is_that_of_a_sample(weights: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 12.0))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "SAMPLE", 2_000_000)
    assert reading_speed(weights[0]) == 1e6


def test_the_start_ends_with_the_first_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    age.cache_clear()
    assert seconds_to_start() is None
    assert "start" not in seconds([])
    with imports():
        monkeypatch.setitem(sys.modules, "something_new", sys)
    known = seconds_to_start()
    assert known is not None
    assert 0 < known < time.time()
    assert seconds([]) == {"start": known}
    age.cache_clear()


def test_measured_seconds_are_no_devices_to_change() -> None:
    speed = published_machine(next(iter(SHEETS)), torch.float32).speed
    assert speed.seconds((Work(elapsed=2.0) + Work(elapsed=1.0)) * 2) == 6.0
