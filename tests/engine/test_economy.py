"""What a run does once, and what a second ratio does not read again."""

import inspect
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import GlobalLoss, Uniform
from svdexp.engine.compress import compress
from svdexp.engine.job import Job
from svdexp.engine.plan import plan
from svdexp.factorisation import InputMoment, smaller_side
from svdexp.method import Method
from svdexp.models import fingerprint as fingerprints
from svdexp.models.structure import Targets
from svdexp.runtime import shelves
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, PivotStorage
from svdexp.storage import pivot as pivots
from svdexp.update import RefitOutput
from tests.conftest import tiny_model

METHOD = Method("svd_llm", InputMoment(), GlobalLoss(), FactorStorage())


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Every tensor that is read from a shelf on disk: its stage, its key, its bytes."""
    seen: list[tuple[str, str, int]] = []
    plain = shelves._read

    def counting(path: Path, keys: Collection[str] | None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        found = plain(path, keys)
        seen.extend((path.parent.parent.name, key, tensor.nbytes) for key, tensor in found[0].items())
        return found

    monkeypatch.setattr(shelves, "_read", counting)
    return seen


def test_a_second_ratio_reads_every_spectrum_and_the_components_of_what_it_truncates(
    windows: torch.Tensor, tmp_path: Path, read: list[tuple[str, str, int]]
) -> None:
    whole = Targets(ranks={"*.1.self_attn.*": None})
    compress(tiny_model("llama_gqa"), windows, METHOD, 0.7, targets=whole, cache=Cache(tmp_path))
    read.clear()
    done = compress(tiny_model("llama_gqa"), windows, METHOD, 0.6, targets=whole, cache=Cache(tmp_path))
    truncated = [name for name, rank in done.ranks.items() if rank is not None]
    assert 0 < len(truncated) < len(done.ranks)
    components = [f"{name}/{key}" for name in truncated for key in ("left", "right")]
    spectral = [f"{name}/{key}" for name in done.ranks for key in ("spectrum", "damping")]
    again = [f"{name}/{key}" for name in truncated for key in ("spectrum", "damping")]  # beside their components
    assert sorted(key for _, key, _ in read) == sorted(components + spectral + again)
    assert {stage for stage, _, _ in read} == {"decompositions"}
    shapes = {layer.name: (layer.m, layer.n) for layer in done.layers}
    numbers = sum(min(shapes[name]) * sum(shapes[name]) for name in truncated)
    assert sum(size for _, key, size in read if key in components) == 4 * numbers


@pytest.mark.parametrize(("known", "hashed"), [(None, 1), ("known", 0)])
def test_the_model_is_hashed_where_its_fingerprint_is_not_known(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch, known: str | None, hashed: int
) -> None:
    seen: list[int] = []
    plain = fingerprints.readable_tensors
    monkeypatch.setattr(fingerprints, "readable_tensors", lambda model: (seen.append(1), plain(model))[1])
    compress(llama, windows, METHOD, 0.6, weights=known)
    assert len(seen) == hashed


def test_a_plan_that_is_there_is_not_made_again(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(llama, METHOD, 0.6, Targets())
    monkeypatch.setattr("svdexp.engine.plan.find_matrices", None)
    assert compress(llama, windows, METHOD, 0.6, planned=planned).layers == planned.layers


def test_a_refit_chooses_pivots_once(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    plain = pivots.choose_pivots
    monkeypatch.setattr(pivots, "choose_pivots", lambda B: (chosen.append(1), plain(B))[1])
    method = Method("update", InputMoment(), Uniform(), PivotStorage(), update=RefitOutput(samples=2))
    ranks = compress(llama, windows, method, 0.6).ranks
    assert len(chosen) == sum(rank is not None for rank in ranks.values()) > 0


@pytest.mark.parametrize("traversal", Traversal)
def test_few_calls_lie_between_compress_and_the_eigendecomposition(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch, traversal: Traversal
) -> None:
    depths: list[list[str]] = []
    plain = smaller_side.eigh

    def listening(S: torch.Tensor) -> object:
        names = [frame.function for frame in inspect.stack()[1:]]
        depths.append(names[: names.index("compress")])
        return plain(S)

    monkeypatch.setattr(smaller_side, "eigh", listening)
    compress(llama, windows, Method("m", InputMoment(), GlobalLoss(), FactorStorage(), traversal=traversal), 0.6)
    assert depths
    if traversal is Traversal.dense:
        assert max(map(len, depths)) <= 4, max(depths, key=len)
    else:  # where every block waits for those before it
        assert min(map(len, depths)) <= 4


def test_a_job_is_not_filled_in_passing(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    assert Job.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert {field.name for field in fields(Job)}.isdisjoint({"replaced", "components", "curves"})
