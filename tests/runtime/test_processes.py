"""Two processes that share a run give the results of one."""

import atexit
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from svdexp.allocation import GlobalLoss
from svdexp.calibration import STATISTICS
from svdexp.calibration.dense import collect
from svdexp.engine.compress import compress
from svdexp.engine.workbench import Workbench
from svdexp.evaluation import perplexity
from svdexp.factorisation import TwoSided
from svdexp.method import Method
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model
from tests.support.two_processes import in_two, join_two

KRON = Method("kron", TwoSided(), GlobalLoss(), FactorStorage())
NEEDS = STATISTICS


def statistics(windows: torch.Tensor, processes: Processes | None) -> dict[str, torch.Tensor]:
    model = tiny_model("llama_gqa")
    found = collect(model, find_matrices(model, Targets()), windows, NEEDS, processes)
    return {f"{layer}/{need}": value for layer, part in found.items() for need, value in part.items()}


def everything(windows: torch.Tensor, folder: Path, processes: Processes | None) -> dict[str, torch.Tensor]:
    """Statistics, the compressed weights, and perplexities before and after."""
    model = tiny_model("llama_gqa")
    found = statistics(windows, processes)
    found["before"] = torch.tensor(perplexity(model, windows, what=None, processes=processes).value)
    done = compress(model, windows, KRON, 0.5, cache=Cache(folder / "cache"))
    found["after"] = torch.tensor(perplexity(model, windows, what=None, processes=processes).value)
    found["ranks"] = torch.tensor([rank or 0 for rank in done.ranks.values()])
    return found


def one_of_two(rank: int, port: int, folder: Path, windows: torch.Tensor) -> None:
    join_two(rank, port)
    at_exit: list[Callable[[], None]] = []
    atexit.register = at_exit.append  # type: ignore[assignment]
    processes = Processes()
    assert processes.agree(rank) == 0
    tensors = everything(windows, folder, processes)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / f"{rank}.safetensors")
    with pytest.raises(UserError, match=r"cache=null .* set cache=FOLDER"):
        compress(tiny_model("llama_gqa"), windows, KRON, 0.5)
    (leave,) = (job for job in at_exit if job.__name__ == "destroy_process_group")
    leave()
    assert not distributed.is_initialized(), "its threads would outlive Python's objects"


def test_two_processes_find_what_one_does(windows: torch.Tensor, tmp_path: Path) -> None:
    in_two(one_of_two, tmp_path, windows[:5])
    expected = everything(windows[:5], tmp_path / "alone", None)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert torch.equal(found.pop("ranks"), expected["ranks"])
        for key, value in found.items():
            scale = float(expected[key].abs().max())
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6 * scale, msg=key)


def test_each_decomposition_is_made_once(windows: torch.Tensor, tmp_path: Path) -> None:
    """The blocks are dealt out: both wrote some of the files, each file was written by one."""
    in_two(one_that_counts, tmp_path, windows[:4])
    made = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert all(made)
    assert sorted(made[0] + made[1]) == ["model.layers.0", "model.layers.1", "model.layers.2"]


def one_that_counts(rank: int, port: int, folder: Path, windows: torch.Tensor) -> None:
    join_two(rank, port)
    made: list[str] = []
    plain: Any = Workbench.decompose

    def counted(self: Workbench, group: str) -> dict[str, torch.Tensor]:
        made.append(group)
        tensors: dict[str, torch.Tensor] = plain(self, group)
        return tensors

    Workbench.decompose = counted  # type: ignore[method-assign]
    compress(tiny_model("llama_gqa"), windows, KRON, 0.5, cache=Cache(folder / "cache"))
    (folder / f"{rank}.json").write_text(json.dumps(made))
    distributed.destroy_process_group()
