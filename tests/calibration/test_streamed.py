"""Statistics of a streamed model: those of the dense pass, and what is left after a kill is not done again."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.calibration import STATISTICS, Statistics
from svdexp.calibration import streamed as module
from svdexp.calibration.dense import DenseStatistics, collect
from svdexp.calibration.needs import distinct
from svdexp.calibration.states import States
from svdexp.calibration.streamed import Sweep
from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.data import windows as data_windows
from svdexp.factorisation import TwoSided, needs_of
from svdexp.models.matrices import Matrix
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Shelf
from tests.conftest import overflow_at, tiny_model
from tests.support.streaming import config_of, streamed
from tests.support.two_processes import in_two, join_two

NEEDS = list(STATISTICS)


def shelves_in(folder: Path, needs: list[str] = NEEDS) -> dict[str, Shelf]:
    return {need: Shelf(folder / need) for need in needs}


def all_of(source: DenseStatistics) -> dict[str, Statistics]:
    groups = dict.fromkeys(layer.group for layer in source.layers)
    return {name: found for group in groups for name, found in source.statistics(group).items()}


def assert_close(found: Mapping[str, Statistics], wanted: Mapping[str, Statistics], needs: list[str] = NEEDS) -> None:
    assert found.keys() == wanted.keys()
    for name, statistics in found.items():
        assert set(statistics) == set(needs)
        for need, tensor in statistics.items():
            difference = (tensor - wanted[name][need]).abs().max()
            assert difference <= 1e-5 * wanted[name][need].abs().max(), (name, need)


def targets_of(model: PreTrainedModel) -> list[Matrix]:
    """All there are: of the head as well, where it has a weight of its own."""
    return find_matrices(model, Targets(lm_head=not model.all_tied_weights_keys))


def test_they_are_those_of_the_dense_pass(model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    layers = targets_of(model)
    source = DenseStatistics(streamed(model, tmp_path), layers, windows, shelves_in(tmp_path), tmp_path / "states")
    assert_close(all_of(source), collect(model, layers, windows, NEEDS))
    assert not (tmp_path / "states").exists()


@pytest.mark.parametrize("needs", [["gram"], ["grad_gram"], ["fisher", "abs_max"], ["output_gram", "input_grad_gram"]])
def test_some_of_them_alone(needs: list[str], llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    layers = targets_of(llama)
    shelves = shelves_in(tmp_path, needs)
    source = DenseStatistics(streamed(llama, tmp_path), layers, windows, shelves, tmp_path / "states")
    assert_close(all_of(source), collect(llama, layers, windows, needs), needs)


def test_forward_windows_go_in_the_batches_of_the_dense_pass(
    model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four and two: products round as there, so sums are the same to the last bit."""
    monkeypatch.setattr(data_windows, "TOKENS_PER_BATCH", 4 * windows.shape[1])
    layers, needs = targets_of(model), ["gram", "output_gram"]
    shelves = shelves_in(tmp_path, needs)
    found = all_of(DenseStatistics(streamed(model, tmp_path), layers, windows, shelves, tmp_path / "states"))
    wanted = collect(model, layers, windows, needs)
    for name, statistics in found.items():
        assert all(torch.equal(tensor, wanted[name][need]) for need, tensor in statistics.items()), name


def test_of_each_layer_what_it_needs(model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    layers = targets_of(model)
    needs = {layer.name: needs_of(TwoSided(), layer.m, layer.n) for layer in layers}
    shelves = shelves_in(tmp_path, distinct(needs))
    source = DenseStatistics(streamed(model, tmp_path), layers, windows, shelves, tmp_path / "states", needs)
    found, wanted = all_of(source), collect(model, layers, windows, needs)
    assert {name: set(part) for name, part in found.items()} == {name: set(asked) for name, asked in needs.items()}
    assert not (tmp_path / "states").exists()
    for name, statistics in found.items():
        assert_close({name: statistics}, {name: wanted[name]}, list(needs[name]))


class Killed(BaseException):
    """As if the process had died."""


@pytest.mark.parametrize("count", range(8))
def test_a_killed_sweep_goes_on_where_it_was(
    count: int, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `count` of its 8 statistics are on the shelves. Only the place that it was at is done twice."""
    model = tiny_model("llama")
    layers, found, runs = targets_of(model), streamed(model, tmp_path), Counter[tuple[str, str]]()
    run, backward, put = Sweep._pass, Sweep._gradient, Shelf.put
    left = count

    def dying_put(self: Shelf, item: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        put(self, item, tensors)

    def counted_pass(self: Sweep, k: int, needs: list[str], on: bool) -> None:
        run(self, k, needs, on)
        runs["forward", self.places[k]] += 1

    def counted_gradient(self: Sweep, place: str, index: int) -> torch.Tensor:
        runs["backward", place] += index == len(windows) - 1
        return backward(self, place, index)

    monkeypatch.setattr(Sweep, "_pass", counted_pass)
    monkeypatch.setattr(Sweep, "_gradient", counted_gradient)
    source = DenseStatistics(found, layers, windows, shelves_in(tmp_path, ["gram", "grad_gram"]), tmp_path / "states")
    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "put", dying_put)
        with pytest.raises(Killed):
            all_of(source)
    assert_close(all_of(source), collect(model, layers, windows, ["gram", "grad_gram"]), ["gram", "grad_gram"])
    assert sum(times > 1 for times in runs.values()) <= 1


def test_states_that_nobody_goes_on_from_are_removed(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    """A whole run took what the killed sweep was for."""
    folder = tmp_path / "states"
    layers = targets_of(llama)
    for needs, gone in ((["gram"], False), (["gram", "grad_gram"], True)):
        (folder / "gradients").mkdir(parents=True, exist_ok=True)
        source = DenseStatistics(llama, layers, windows, shelves_in(tmp_path, needs), folder)
        all_of(source)
        with module.alone(folder):
            source.forget_states()
            assert folder.exists()
        source.forget_states()
        assert folder.exists() is not gone


def test_a_state_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    states = States(tmp_path, (2, 3), torch.float32)
    with states.write("a") as filled:
        filled[:] = 1
    assert torch.equal(states.read("a"), torch.ones(2, 3))
    (tmp_path / "a.states").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"a\.states is damaged; delete the folder"):
        states.read("a")


def test_states_that_were_not_finished_are_not_there(tmp_path: Path) -> None:
    states = States(tmp_path, (2, 3), torch.float32)
    with pytest.raises(ZeroDivisionError), states.write("a"):
        raise ZeroDivisionError
    assert "a" not in states
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_states_is_asked_for_first(
    windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    layers, found = targets_of(model), streamed(model, tmp_path)
    source = DenseStatistics(found, layers, windows, shelves_in(tmp_path), tmp_path / "states")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"^cache: .* GB left, but the hidden states of all windows take 0.00; name"):
        all_of(source)


def test_numbers_that_are_not_finite_name_the_window(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    windows[windows == 7] = 8
    windows[4, 3] = 7
    layers, found = targets_of(llama), streamed(llama, tmp_path)
    overflow_at(found, 7)
    source = DenseStatistics(found, layers, windows, shelves_in(tmp_path), tmp_path / "states")
    with pytest.raises(UserError, match=r"is not finite in window 4; try precision=float32"):
        all_of(source)


def one_of_two(rank: int, port: int, folder: Path, windows: torch.Tensor) -> None:
    """Rank 0 finds states of an earlier run that rank 1 lacks, so they are made anew."""
    join_two(rank, port)
    if rank == 0:
        old = States(folder / "states" / "0-of-2" / "entering", (2, windows.shape[1], 32), torch.float32)
        with old.write("model.layers.1") as filled:
            filled.fill_(torch.nan)
    take_part(rank, folder, windows, NEEDS)
    assert not (folder / "states").exists()


def take_part(rank: int, folder: Path, windows: torch.Tensor, needs: list[str]) -> None:
    """Prepare the statistics of the model in `folder`, and hold them against those of one process."""
    model = tiny_model("llama")
    found = load_streamed(config_of(folder / "model"), torch.float32, torch.device("cpu"), folder / f"blocks-{rank}")
    source = DenseStatistics(found, targets_of(model), windows, shelves_in(folder, needs), folder / "states")
    source.prepare(Processes())
    assert_close(all_of(source), collect(model, source.layers, windows, needs), needs)


def test_two_processes_take_the_statistics_of_one(windows: torch.Tensor, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    in_two(one_of_two, tmp_path, windows[:3])


def one_of_two_forward(rank: int, port: int, folder: Path, windows: torch.Tensor, batch: int) -> None:
    """Batches are dealt out, of the head's layer too."""
    join_two(rank, port)
    data_windows.TOKENS_PER_BATCH = batch * windows.shape[1]
    take_part(rank, folder, windows, ["gram"])


@pytest.mark.parametrize("batch", [2, 6])
def test_batches_are_dealt_out(batch: int, windows: torch.Tensor, tmp_path: Path) -> None:
    """Three of them; or one, and nothing for the second process."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    in_two(one_of_two_forward, tmp_path, windows, batch)
