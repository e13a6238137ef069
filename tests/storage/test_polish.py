"""Polishing: no code and no step can be bettered alone, by brute force; nothing is ever lost by it."""

import itertools
from dataclasses import replace

import pytest
import torch

from svdexp.allocation import Whole
from svdexp.engine.compress import compress
from svdexp.method import Method
from svdexp.runtime.errors import UserError
from svdexp.storage import FormStorage, GPTQStorage
from svdexp.storage.polish import polished
from svdexp.storage.rounding import Grid, Inputs, Rounded, gptq, to_nearest
from tests.conftest import tiny_model
from tests.storage.test_rounding import correlated, drawn

GRIDS = [Grid(2, 8), Grid(3, 5, zero_points=True), Grid(4, None), Grid(2, None, zero_points=True), Grid(3, 8, fit=True)]


def lost(W: torch.Tensor, C: torch.Tensor, grid: Grid, rounded: Rounded) -> torch.Tensor:
    """Of every row, (rows,), under the damped C."""
    D = W - grid.numbers(rounded)
    return ((D @ Inputs.of(C).damped) * D).sum(1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_code_alone_can_be_better(grid: Grid) -> None:
    """After rounds enough, against every other value of every code."""
    W, C = drawn(3, 21, seed=1), correlated(21)
    found = polished(W, C, grid, gptq(W, C, grid), 50)
    least = lost(W, C, grid, found)
    for j, code in itertools.product(range(21), range(grid.highest + 1)):
        codes = found.codes.clone()
        codes[:, j] = code
        assert (lost(W, C, grid, replace(found, codes=codes)) >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_steps_are_those_of_least_squares(grid: Grid) -> None:
    """Against torch's least squares on W C^½, one row at a time: no multiple of a float16's distance apart."""
    W, C = drawn(4, 21, seed=2), correlated(21)
    found = polished(W, C, grid, gptq(W, C, grid), 50)
    root = torch.linalg.cholesky(Inputs.of(C).damped)
    zero = torch.full(found.scale.shape, 1 << (grid.bits - 1)) if found.zero is None else found.zero
    size = grid.group_size or 21
    for row in range(4):
        groups = []
        for g, start in enumerate(range(0, 21, size)):
            part = torch.zeros(21, dtype=torch.float64)
            part[start : start + size] = (found.codes[row, start : start + size] - zero[row, g]).double()
            groups.append(part @ root)
        best = torch.linalg.lstsq(torch.stack(groups, 1), W[row] @ root).solution
        torch.testing.assert_close(found.scale[row].double(), best, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_row_loses(grid: Grid, rounds: int) -> None:
    W, C = drawn(40, 100, seed=3), correlated(100)
    C[50:] = C[:, 50:] = 0  # where no input ever came
    for before in (gptq(W, C, grid), to_nearest(W, grid)):
        after = polished(W, C, grid, before, rounds)
        losses = lost(W, C, grid, after), lost(W, C, grid, before)
        assert (losses[0] <= losses[1] * (1 + 1e-9)).all()
        assert losses[0].sum() < 0.99 * losses[1].sum()
        assert after.codes.amin() >= 0
        assert after.codes.amax() <= grid.highest
        assert (after.scale > 0).all()


def test_it_nears_the_best_codes_of_all() -> None:
    """By exhaustive search over the codes of one row at the same steps."""
    grid, C = Grid(2, None), correlated(7)
    gaps = []
    for seed in range(20):
        W = drawn(1, 7, seed=seed)
        before = gptq(W, C, grid)
        found = polished(W, C, grid, before, 20)
        every = torch.tensor(list(itertools.product(range(4), repeat=7)), dtype=torch.int32)
        scale = found.scale.expand(len(every), 1)
        best = lost(W.expand(len(every), 7), C, grid, Rounded(every, scale)).min()
        gaps.append([float(lost(W, C, grid, x).sum() / best) for x in (replace(before, scale=found.scale), found)])
    means = torch.tensor(gaps).log().mean(0)
    assert 0 <= means[1] < 0.95 * means[0]


def test_zeros_stay_zeros() -> None:
    grid = Grid(3, 8)
    W = torch.zeros(2, 16, dtype=torch.float64)
    found = polished(W, correlated(16), grid, gptq(W, correlated(16), grid), 2)
    assert not grid.numbers(found).any()


def test_storages_polish_what_they_finish(windows: torch.Tensor) -> None:
    plain = Method("quantise", None, Whole(), GPTQStorage(3, 16, samples=4))
    models = [tiny_model("llama_gqa") for _ in range(2)]
    dense = tiny_model("llama_gqa")
    name = "model.layers.0.self_attn.q_proj"
    for model, storage in zip(models, (plain.storage, GPTQStorage(3, 16, samples=4, polish=3)), strict=True):
        compress(model, windows, replace(plain, storage=storage), 0.6)
    x = dense.model.embed_tokens(windows[:4]).double()
    x = dense.model.layers[0].input_layernorm(x.float()).double().flatten(0, 1)
    W = dense.get_submodule(name).weight.double()
    errors = [float((x @ (W - model.get_submodule(name).weight.double()).mT).square().sum()) for model in models]
    assert errors[1] < 0.95 * errors[0]


def test_forms_hand_it_on() -> None:
    forms = FormStorage(["gptq2-g8", "rtn3-g8", "dense"], polish=2).menu
    assert forms["gptq2-g8"].storage == GPTQStorage(2, 8, polish=2)


@pytest.mark.parametrize("storage", [GPTQStorage, FormStorage])
def test_a_number_of_rounds_is_none_below_zero(storage: type) -> None:
    with pytest.raises(UserError, match=r"storage\.polish must be at least 0, not -1"):
        storage(polish=-1)
