"""What an estimate says of the disk, against what runs leave there and what they wait with."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from svdexp.allocation import Uniform, Whole
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.estimate.disk import cache_bytes, shortage, states_bytes, with_disk
from svdexp.estimate.stages import Stage, stages
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.structure import stored_bytes
from svdexp.models.work import Workload
from svdexp.runtime.shelves import Cache
from svdexp.schema import EfficiencyConfig, EvalConfig, Save, Traversal
from svdexp.storage import FactorStorage, GPTQStorage
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at

RATIO = 0.5
ONE_SIDED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
BLOCKWISE = replace(ONE_SIDED, traversal=Traversal.blockwise)
TWO_SIDED = replace(ONE_SIDED, weighting=TwoSided())


@pytest.fixture
def workload(windows: torch.Tensor) -> Workload:
    return workload_at(tiny_model("llama_gqa"), RATIO, windows=len(windows), length=windows.shape[1])


def rows(workload: Workload, method: Method, **options: Any) -> dict[str, Stage]:
    how = {"save": Save.checkpoint, "cached": True, "streamed": False} | options
    evaluation = EvalConfig(texts=[], efficiency=EfficiencyConfig())
    return {
        row.name: row for row in with_disk(stages(workload, method, evaluation, [], **how), workload, method, **how)
    }


def tensors(folder: Path) -> int:
    """Bytes of all in the files below a folder."""
    found = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    return found


@pytest.mark.parametrize("method", [ONE_SIDED, BLOCKWISE, TWO_SIDED], ids=["one-sided", "blockwise", "two-sided"])
def test_as_much_as_a_run_leaves(method: Method, workload: Workload, windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    found = compress(model, windows, method, RATIO, cache=Cache(tmp_path / "cache"))
    checkpoint.save(model, None, tmp_path / "checkpoint", found.ranks)
    foreseen = cache_bytes(workload, method)
    assert foreseen["calibration"] == tensors(tmp_path / "cache" / "statistics")
    decomposed = "blockwise" if method is BLOCKWISE else "decompositions"
    beside = 8 * len(workload.layers) * (2 + 32)  # damping and spectra, float64, of at most 32 values
    assert 0 < tensors(tmp_path / "cache" / decomposed) - foreseen["factorisation"] <= beside
    levels = rows(workload, method)
    assert levels["evaluate_dense"].disk == 0
    assert levels["calibration"].disk == foreseen["calibration"]
    assert levels["storage"].disk == levels["factorisation"].disk == sum(foreseen.values())
    saved = tensors(tmp_path / "checkpoint")
    assert levels["save"].disk - levels["evaluate"].disk == pytest.approx(saved, rel=0.02)
    assert saved < stored_bytes(tiny_model("llama_gqa"))


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        (Method("quantise", None, Whole(), GPTQStorage(4, 16, samples=2)), 0.4),
        (replace(ONE_SIDED, storage=GPTQStorage(4, 16, samples=2)), 0.25),
    ],
    ids=["whole", "factors"],
)
def test_codes_of_finished_blocks_are_counted(
    method: Method, ratio: float, windows: torch.Tensor, tmp_path: Path
) -> None:
    size = {"windows": len(windows), "length": windows.shape[1]}
    parts: Any = {"storage": method.storage, "allocation": method.allocation}
    workload = workload_at(tiny_model("llama_gqa"), ratio, **size, **parts)
    compress(tiny_model("llama_gqa"), windows, method, ratio, cache=Cache(tmp_path))
    left = tensors(tmp_path / "finished")
    found, uncached = rows(workload, method), rows(workload, method, cached=False)
    assert found["storage"].disk - found["allocation"].disk == pytest.approx(left, rel=0.02)
    assert uncached["storage"].disk == 0


def test_what_is_saved_is_counted_where_it_is_written(workload: Workload) -> None:
    kept = sum(cache_bytes(workload, ONE_SIDED).values())
    nothing, elastic = (rows(workload, ONE_SIDED, save=save) for save in (Save.none, Save.elastic))
    assert max(row.disk for row in nothing.values()) == kept
    assert elastic["save"].disk > rows(workload, ONE_SIDED)["save"].disk + sum(4 * x.m * x.n for x in workload.layers)
    streamed = rows(workload, ONE_SIDED, streamed=True, save=Save.none)  # its blocks wait in files
    assert streamed["storage"].disk == streamed["evaluate"].disk == kept + workload.compressed_bytes
    uncached = rows(workload, ONE_SIDED, cached=False)
    assert uncached["evaluate"].disk == 0
    assert uncached["save"].disk == workload.compressed_bytes


def test_states_wait_while_calibration_lasts(workload: Workload, windows: torch.Tensor) -> None:
    one = windows.numel() * 32 * 4
    for method, count in ((ONE_SIDED, 2), (TWO_SIDED, 3 + 2)):
        assert states_bytes(workload, method) == count * one
        whole, streamed = (rows(workload, method, streamed=streamed) for streamed in (False, True))
        assert streamed["calibration"].disk - whole["calibration"].disk == count * one
        assert streamed["factorisation"].disk == whole["factorisation"].disk


def test_a_disk_too_small_is_told_with_the_knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    usage = namedtuple("usage", "free")

    def disk_usage(folder: Path) -> Any:
        asked.append(folder)
        return usage(40e9)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    cache = tmp_path / "not" / "there"
    assert shortage(40e9, str(cache), tmp_path) is None
    assert asked == [tmp_path]
    said = shortage(65e9, str(cache), tmp_path)
    assert said is not None
    assert said.startswith(f"cache: the disk of {cache} has 40 GB left, of which the run is estimated to take 65 GB")
    assert "\n" not in said
    assert str(shortage(65e9, None, tmp_path)).endswith("name another folder with hydra.run.dir=FOLDER")
