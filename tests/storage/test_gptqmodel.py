"""The maintained library against our solver, where it is installed, and a clear sentence where it is not."""

import sys
from dataclasses import replace

import pytest
import torch

from svdexp.allocation import Uniform
from svdexp.engine.compress import compress
from svdexp.runtime.errors import UserError
from svdexp.storage import GPTQStorage
from svdexp.storage.gptqmodel import by_gptqmodel
from svdexp.storage.quantised import Solver
from svdexp.storage.rounding import Grid, gptq, to_nearest
from tests.conftest import tiny_model
from tests.storage.test_rounding import correlated, drawn, lost
from tests.test_compress import WHITENED


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 32), Grid(8, None), Grid(4, 16)], ids=str)
@pytest.mark.parametrize("columns", [96, 100])
def test_both_lose_alike(grid: Grid, columns: int) -> None:
    pytest.importorskip("gptqmodel")
    W, C = drawn(48, columns, seed=3), correlated(columns)
    found = by_gptqmodel(W, C, grid)
    ours, nearest = gptq(W, C, grid), to_nearest(W, grid)
    assert (found.codes.shape, found.scale.shape) == (ours.codes.shape, ours.scale.shape)
    assert int(found.codes.min()) >= 0
    assert int(found.codes.max()) < 2**grid.bits
    theirs = lost(W, found, grid, C)
    assert theirs < 0.5 * lost(W, nearest, grid, C)
    if columns == 96 or grid.group_size is None:  # it makes less of a last group that is short
        assert 0.8 < theirs / lost(W, ours, grid, C) < 1.25


def test_a_model_by_the_library(windows: torch.Tensor) -> None:
    pytest.importorskip("gptqmodel")
    logits = []
    for solver in Solver:
        model = tiny_model("llama_gqa")
        storage = GPTQStorage(4, 16, solver=solver)
        compress(model, windows, replace(WHITENED, storage=storage, allocation=Uniform(rank_align=16)), 0.5)
        logits.append(model(windows).logits)
    dense = tiny_model("llama_gqa")(windows).logits
    errors = [float((found - dense).norm()) for found in logits]
    assert 0.8 < errors[0] / errors[1] < 1.25


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    with pytest.raises(UserError, match=r"needs the package gptqmodel; .* storage\.solver=own needs none"):
        GPTQStorage(solver=Solver.gptqmodel)
