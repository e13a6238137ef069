"""One cell, one process, one set of results."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from svdexp.cells import HeldError, OccupiedError, carry_out, is_finished, lacks_card, note_failure, state_of, wait_for
from svdexp.cells import cell as module
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.schema import Config, Save
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model
from tests.support.shrunk import shrunk
from tests.support.two_processes import in_two, join_two
from tests.test_compress import WHITENED

HOLD = """
import sys
from pathlib import Path
from svdexp.cells.cell import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _without_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = SimpleNamespace(identity_of=lambda config: f"seed {config.seed}")
    monkeypatch.setitem(sys.modules, "svdexp.cells.identity", identity)
    monkeypatch.setattr(module, "configurations", lambda cfg: {"config": cfg})


def config(**values: Any) -> Config:
    return Config(storage={}, ratio=0.5, cache=None, **{"save": Save.none, **values})


def work(config: Config, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps({"cell": f"seed {config.seed}"}))


def carry(folder: Path, **values: Any) -> None:
    carry_out(OmegaConf.create(), config(**values), folder, work)


def forbidden(config: Config, folder: Path) -> None:
    raise AssertionError("the work is done again")


def test_finished_cells_are_skipped(tmp_path: Path) -> None:
    assert state_of(config(), tmp_path / "none") == "not started"
    assert state_of(config(), tmp_path) == "started, not finished"
    carry(tmp_path)
    assert state_of(config(), tmp_path).startswith("finished: ")
    carry_out(OmegaConf.create(), config(), tmp_path, forbidden)


def test_a_checkpoint_that_is_asked_for_must_be_whole(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    carry(tmp_path)
    assert not is_finished(config(save=Save.checkpoint), tmp_path)
    assert caplog.messages == []
    model, ranks = shrunk("opt", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", ranks)
    assert is_finished(config(save=Save.checkpoint), tmp_path)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_finished(config(save=Save.checkpoint), tmp_path)
    assert "model.safetensors is damaged or cut short" in caplog.messages[0]
    assert is_finished(config(), tmp_path)


def test_a_checkpoint_of_one_size_has_no_lower_ratios(tmp_path: Path, tokenizer: Any, windows: torch.Tensor) -> None:
    carry(tmp_path)
    model = tiny_model("opt")
    done = compress(model, windows, WHITENED, 0.5, elastic=True)
    for elastic in (None, done.elastic):
        checkpoint.save(model, tokenizer, tmp_path / "checkpoint", done.ranks, elastic)
        assert is_finished(config(save=Save.checkpoint), tmp_path)
        assert is_finished(config(save=Save.elastic), tmp_path) == (elastic is not None)


def test_files_of_a_checkpoint_that_something_else_wrote_end_in_no_traceback(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    carry(tmp_path)
    model, ranks = shrunk("opt", FactorStorage())
    folder = tmp_path / "checkpoint"
    checkpoint.save(model, tokenizer, folder, ranks)
    (folder / "model.safetensors.index.json").write_text("[]")  # which nothing reads beside model.safetensors
    assert is_finished(config(save=Save.checkpoint), tmp_path)
    table = json.loads((folder / "config.json").read_text())
    for elastic in (5, {"layers": 5}, {"layers": {}}):
        table["svdexp"]["elastic"] = elastic
        (folder / "config.json").write_text(json.dumps(table))
        assert not is_finished(config(save=Save.checkpoint), tmp_path)
        assert "svdexp.elastic is no recipe" in caplog.messages[-1]


@pytest.mark.parametrize(("difference", "finished"), [("NaN", False), ("0.0", True), ("1e-6", True), ("null", True)])
def test_a_verification_without_a_number_is_no_end(difference: str, finished: bool, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(f'{{"cell": "seed 0", "reload_max_logit_difference": {difference}}}')
    assert is_finished(config(), tmp_path) == finished


def test_a_card_alone_may_be_missing(tmp_path: Path, tokenizer: Any) -> None:
    carry(tmp_path)
    assert not lacks_card(config(save=Save.hf), tmp_path)  # the checkpoint is missing, too
    model, ranks = shrunk("opt", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", ranks)
    assert not is_finished(config(save=Save.hf), tmp_path)
    assert lacks_card(config(save=Save.hf), tmp_path)
    assert not lacks_card(config(save=Save.checkpoint), tmp_path)
    (tmp_path / "checkpoint" / "README.md").touch()
    assert is_finished(config(save=Save.hf), tmp_path)
    assert not lacks_card(config(save=Save.hf), tmp_path)


@pytest.mark.parametrize("found", ["{}", '{"cell": "seed 1"}', "[]", "{"])
def test_other_results_are_not_touched(tmp_path: Path, found: str) -> None:
    (tmp_path / "results.json").write_text(found)
    with pytest.raises(OccupiedError, match=r"holds results of another configuration.*hydra\.run\.dir"):
        carry(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == found


def test_a_failure_is_noted_until_the_next_try(tmp_path: Path) -> None:
    try:
        raise RuntimeError("a defect")
    except RuntimeError as error:
        note_failure(tmp_path, error, "a sentence")
    assert state_of(config(), tmp_path) == "failed: a sentence"
    note = json.loads((tmp_path / "failed.json").read_text())
    assert note["type"] == "RuntimeError"
    assert "a defect" in note["traceback"]
    note_failure(tmp_path, UserError("a mistake"), "a mistake")
    assert json.loads((tmp_path / "failed.json").read_text()) == {"error": "a mistake"}
    carry(tmp_path)
    assert not (tmp_path / "failed.json").exists()


def test_processes_that_share_a_run_do_as_the_main_one(tmp_path: Path) -> None:
    for _ in range(2):
        in_two(one_of_two, tmp_path)
    done = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json")
    assert done == ["0.json", "1.json", "results.json"]


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """Each may work once; the second time they are told that it is finished."""
    join_two(rank, port)
    sys.modules["svdexp.cells.identity"] = SimpleNamespace(identity_of=lambda config: "seed 0")  # type: ignore[assignment]
    module.configurations = lambda cfg: {"config": cfg}  # type: ignore[assignment]

    def share(config: Config, folder: Path) -> None:
        with (folder / f"{rank}.json").open("x"):
            Processes().wait()
        if rank == 0:
            work(config, folder)

    carry_out(OmegaConf.create(), config(), folder, share)
    torch.distributed.destroy_process_group()


def test_a_lock_lasts_as_long_as_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=str(tmp_path)):
            carry(tmp_path)
        assert "another process" in state_of(config(), tmp_path)
        holder.kill()
    wait_for(tmp_path)
    carry(tmp_path)
    assert is_finished(config(), tmp_path)
