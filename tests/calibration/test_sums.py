"""A calibration that is killed goes on behind the windows that it has seen, to the same last bit."""

import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.calibration import STATISTICS, DenseStatistics, dense, sums
from svdexp.calibration.collector import Collector
from svdexp.calibration.statistics import Gram, Statistics
from svdexp.calibration.sums import KeptSums
from svdexp.models.matrices import Matrix
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Alone
from svdexp.runtime.shelves import Shelf
from tests.conftest import tiny_model
from tests.support.experts import tiny_experts


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sums after every batch."""
    monkeypatch.setattr(sums, "PERIOD", 0.0)
    monkeypatch.setattr(sums, "PATIENCE", 0)


class Killed(Exception):  # noqa: N818
    pass


def killed_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next passes over windows end so."""

    def progress(items: Sequence[Any], what: str) -> Iterator[Any]:
        yield from items[:batches]
        raise Killed

    monkeypatch.setattr(dense, "progress", progress)


def run(model: PreTrainedModel, windows: torch.Tensor, folder: Path | None, needs: Sequence[str] = STATISTICS) -> Any:
    source = source_of(model, windows, folder, needs)
    return {name: x for group in groups_of(source.layers) for name, x in source.statistics(group).items()}


def source_of(
    model: PreTrainedModel, windows: torch.Tensor, folder: Path | None, needs: Sequence[str]
) -> DenseStatistics:
    layers = find_matrices(model, Targets())
    return DenseStatistics(model, layers, windows, {need: Shelf() for need in needs}, sums=folder)


def groups_of(layers: Sequence[Matrix]) -> list[str]:
    return list(dict.fromkeys(layer.group for layer in layers))


def run_until(model: PreTrainedModel, windows: torch.Tensor, folder: Path, needs: Sequence[str], batches: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_after(batches, patch)
        with pytest.raises(Killed):
            run(model, windows, folder, needs)


def seen_windows(model: PreTrainedModel, windows: torch.Tensor, folder: Path, needs: Sequence[str]) -> Any:
    """The statistics, and the first windows of the batches that took."""
    seen = []

    def progress(items: Sequence[Any], what: str) -> Iterator[Any]:
        for start, batch in items:
            seen.append(start)
            yield start, batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "progress", progress)
        return run(model, windows, folder, needs), seen


def assert_same(found: dict[str, Statistics], expected: dict[str, Statistics]) -> None:
    assert found.keys() == expected.keys()
    for name, statistics in expected.items():
        assert found[name].keys() == statistics.keys()
        assert all(torch.equal(found[name][need], value) for need, value in statistics.items()), name


@pytest.mark.parametrize(("make", "name"), [(tiny_model, "llama_gqa"), (tiny_experts, "mixtral")])
def test_it_goes_on_to_the_same_last_bit(
    make: Callable[[str], PreTrainedModel], name: str, windows: torch.Tensor, tmp_path: Path
) -> None:
    model, folder = make(name), tmp_path / "sums"
    expected = run(model, windows[:5], None)
    run_until(model, windows[:5], folder, STATISTICS, 2)
    run_until(model, windows[:5], folder, STATISTICS, 1)
    found, seen = seen_windows(model, windows[:5], folder, STATISTICS)
    assert seen == [3, 4]
    assert_same(found, expected)
    assert not list(tmp_path.iterdir())


def test_a_forward_pass_alone_does_too(windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, needs = tiny_model("llama_gqa"), ("gram", "abs_max", "output_gram")
    monkeypatch.setattr("svdexp.data.windows.at_once", lambda windows: 2)
    expected = run(model, windows[:5], None, needs)
    run_until(model, windows[:5], tmp_path / "sums", needs, 2)
    found, seen = seen_windows(model, windows[:5], tmp_path / "sums", needs)
    assert seen == [4]
    assert_same(found, expected)


def test_other_sums_are_not_taken(windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    run_until(model, windows[:3], tmp_path / "sums", ["gram"], 1)
    found, seen = seen_windows(model, windows[:3], tmp_path / "sums", ["gram", "grad_gram"])
    assert seen == [0, 1, 2]
    assert_same(found, run(model, windows[:3], None, ["gram", "grad_gram"]))


def test_a_share_of_the_windows_is_not_another(windows: torch.Tensor, tmp_path: Path) -> None:
    class Second(Alone):
        def __init__(self) -> None:
            super().__init__()
            self.index, self.count = 1, 2

        def agree(self, value: Any) -> Any:
            return value

    model = tiny_model("llama_gqa")
    with pytest.MonkeyPatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            source_of(model, windows[:4], tmp_path / "sums", ["grad_gram"]).prepare(Second())
    assert len(list((tmp_path / "sums").iterdir())) == 1
    assert seen_windows(model, windows[:4], tmp_path / "sums", ["grad_gram"])[1] == [0, 1, 2, 3]


def test_damaged_ones_are_summed_again(windows: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama_gqa")
    run_until(model, windows[:3], tmp_path / "sums", ["gram", "grad_gram"], 2)
    (path,) = tmp_path.glob("sums/*/model.layers.1.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert seen_windows(model, windows[:3], tmp_path / "sums", ["gram", "grad_gram"])[1] == [0, 1, 2]
    assert "is damaged" in caplog.text


def test_blocks_of_several_moments_are_not_mixed(windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    run_until(model, windows[:3], tmp_path / "sums", ["grad_gram"], 2)
    run_until(model, windows[:3], tmp_path / "other", ["grad_gram"], 1)
    (path,), (other,) = (tmp_path.glob(f"{name}/*/model.layers.1.safetensors") for name in ("sums", "other"))
    path.write_bytes(other.read_bytes())
    assert seen_windows(model, windows[:3], tmp_path / "sums", ["grad_gram"])[1] == [0, 1, 2]


def test_a_full_disk_ends_nothing(
    windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("svdexp.runtime.shelves.save_file", full)
    model = tiny_model("llama_gqa")
    assert_same(run(model, windows[:3], tmp_path / "sums", ["gram"]), run(model, windows[:3], None, ["gram"]))
    assert caplog.text.count("what was summed so far is not kept") == 1
    assert not list(tmp_path.iterdir())


def test_they_are_kept_until_the_statistics_are(windows: torch.Tensor, tmp_path: Path) -> None:
    class Full(Shelf):
        def put(self, item: str, tensors: dict[str, torch.Tensor]) -> None:
            raise UserError("the disk is full")

    model, folder = tiny_model("llama_gqa"), tmp_path / "sums"
    source = source_of(model, windows[:3], folder, ["grad_gram"])
    source.shelves = {"grad_gram": Full()}
    with pytest.raises(UserError, match="full"):
        source.statistics("model.layers.0")
    assert seen_windows(model, windows[:3], folder, ["grad_gram"])[1] == []
    assert not list(tmp_path.iterdir())


def test_they_are_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.9, 5.0, 7.0, 26.9, 27.0, 27.0])
    monkeypatch.setattr(sums, "PERIOD", 5.0)
    monkeypatch.setattr(sums, "PATIENCE", 10)
    monkeypatch.setattr("svdexp.calibration.sums.time.monotonic", lambda: next(clock))
    kept, given = KeptSums(tmp_path / "sums"), {"block": {"a": torch.ones(2)}}
    for seen, expected in enumerate([0, 1, 1, 3]):
        kept.keep(seen, lambda: given)
        assert kept.read(given)[0] == expected


@pytest.mark.parametrize("killed", [False, True])
def test_sums_are_let_go_when_their_results_are_made(
    killed: bool, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all layers take as much again as the results."""
    model, totals, alive = tiny_model("llama_gqa"), list[Any](), list[int]()
    if killed:
        run_until(model, windows[:3], tmp_path / "sums", ["gram"], 2)
    result = Gram.result

    def seen(self: Gram) -> torch.Tensor:
        totals.append(ref(self.total))
        alive.append(sum(total() is not None for total in totals))
        return result(self)

    monkeypatch.setattr(Gram, "result", seen)
    run(model, windows[:3], tmp_path / "sums", ["gram"])
    assert len(totals) == 12
    assert set(alive) == {1}


def test_what_a_collector_sums_up_has_names_of_its_own(windows: torch.Tensor) -> None:
    model = tiny_model("llama_gqa")
    layers = find_matrices(model, Targets())
    collector = Collector(model, layers, {layer.name: layer.name for layer in layers}, STATISTICS)
    numbers = sum(len(block) for block in collector.sums().values())
    assert numbers == len(layers) * (2 * len(STATISTICS) - 1)  # of a maximum there is no count
