"""AWQ: prices, the search against brute force and against rounding, and checkpoints that transformers loads alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.allocation import Whole
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.export.autogptq import quantised_layers
from svdexp.method import Method
from svdexp.models.factors import low_rank_layer
from svdexp.models.portable.svdexp_scaled import ScaledLinear
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.storage import AWQStorage, stored_bits
from svdexp.storage.awq import RUNGS, awq
from svdexp.storage.quantised import numbers_of
from svdexp.storage.rounding import Grid, to_nearest
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at
from tests.storage.test_pivot import random_factors
from tests.storage.test_rounding import correlated, drawn
from tests.test_compress import WHITENED

WHOLE = Method("quantise", None, Whole(), AWQStorage(4, 8, samples=4))


def lost(W: torch.Tensor, held: torch.Tensor, C: torch.Tensor) -> float:
    return float(((W - held) @ C * (W - held)).sum())


@pytest.mark.parametrize("grid", [Grid(3, 8), Grid(4, None, zero_points=True), Grid(2, 5, zero_points=True)], ids=str)
def test_the_scale_is_the_best_of_the_ladder(grid: Grid) -> None:
    """By brute force in float64; and no worse than without any scale, which is its first rung."""
    W, C = drawn(12, 40, seed=3), correlated(40)
    C[7] *= 30
    C[:, 7] *= 30
    found = awq(W, C, grid)
    size = C.diagonal().sqrt()
    size[2] = size[size > 0].min()  # where no input ever came
    losses = []
    for rung in range(RUNGS):
        s = size ** (rung / RUNGS)
        columns = (1 / (s / (s.max() * s.min()).sqrt())).half().double()
        losses.append(lost(W, grid.numbers(to_nearest(W / columns, grid)) * columns, C))
    assert lost(W, found.numbers(grid), C) == pytest.approx(min(losses), rel=1e-4)
    assert losses[0] == pytest.approx(lost(W, grid.numbers(to_nearest(W, grid)), C), rel=1e-2)
    assert min(losses) < 0.9 * losses[0]


def test_inputs_that_say_nothing_leave_rounding_to_nearest() -> None:
    W, grid = drawn(5, 24), Grid(4, 8)
    for C in (torch.eye(24), torch.zeros(24, 24)):
        found = awq(W, C, grid)
        assert torch.equal(found.columns, torch.ones(24).half())
        assert torch.equal(found.rounded.codes, to_nearest(W, grid).codes)


@pytest.mark.parametrize("storage", [AWQStorage(4, 8), AWQStorage(3, None, zero_points=False)], ids=str)
def test_bits_are_those_of_the_tensors(storage: AWQStorage) -> None:
    model = tiny_model("llama_gqa")
    matrix, _ = find_matrices(model, Targets())[:2]
    W = matrix.weight(model).clone()
    C = correlated(W.shape[1]).float()
    whole = storage.stored(model, matrix, C)
    assert isinstance(whole, ScaledLinear)
    assert stored_bits(whole) == storage.whole_bits(*W.shape)
    assert lost(W, whole.weight, C) <= lost(W, storage.nearest.whole(W, None).weight, C) * 1.001
    matrix.put(model, low_rank_layer(random_factors(*W.shape, 3), torch.randn(len(W)), W))
    held = storage.stored(model, matrix, C)
    assert stored_bits(held) == storage.bits(3, *W.shape)
    x = torch.randn(4, W.shape[1])
    torch.testing.assert_close(held(x), x @ held.weight.T + held.bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(numbers_of(held)(x), held(x), rtol=1e-5, atol=1e-5)
    many = torch.randn(40, W.shape[1])
    assert torch.equal(numbers_of(held)(many), held(many))


@pytest.mark.parametrize("method", [WHOLE, replace(WHITENED, storage=WHOLE.storage)], ids=["whole", "factors"])
def test_saved_and_loaded(method: Method, windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    done = compress(model, windows, method, 0.6)
    assert done.achieved_ratio <= 0.6
    checkpoint.save(model, None, tmp_path, done.ranks)
    ours, _ = svdexp.load(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(ours(windows).logits, model(windows).logits)
    assert torch.equal(theirs(windows).logits, model(windows).logits)
    with pytest.raises(UserError, match="all matrices of the blocks in codes alone"):
        quantised_layers(model)
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(key for key in tensors if key.endswith("_columns"))
    tensors[key][0] = torch.tensor([torch.inf], dtype=torch.float16).view(torch.int16)[0]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its scales are not finite"):
        svdexp.load(tmp_path)


@pytest.mark.parametrize("rank", [None, 4])
def test_its_cost_is_what_torch_counts_of_the_ladder(rank: int | None) -> None:
    model = tiny_model("llama_gqa")
    workload = replace(workload_at(model, 0.5, windows=0, length=24), ranks=dict.fromkeys(names_of(model), rank))
    storage = AWQStorage(4, 8)
    for matrix in workload.layers:
        if rank is not None:
            W = matrix.weight(model)
            matrix.put(model, low_rank_layer(random_factors(matrix.m, matrix.n, rank), matrix.bias(model), W))
        with FlopCounterMode(display=False) as counter:
            storage.stored(model, matrix, torch.eye(matrix.n))
        expected = storage.cost(replace(workload, layers=(matrix,))).float32
        # of factors, once more what the rounded B makes of C, which the ladder of A is for
        assert expected == pytest.approx(counter.get_total_flops(), rel=1e-9 if rank is None else 0.1)


def names_of(model: PreTrainedModel) -> list[str]:
    return [matrix.name for matrix in find_matrices(model, Targets())]


def test_samples_are_positive() -> None:
    with pytest.raises(UserError, match=r"storage\.samples must be"):
        AWQStorage(samples=0)
