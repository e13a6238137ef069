"""Experts as their Fisher-weighted mean and low-rank deltas."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.allocation import GlobalLoss, Uniform
from svdexp.calibration.dense import collect
from svdexp.calibration.loss import next_token_loss
from svdexp.checkpoints.checkpoint import label
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.matrices import stacks
from svdexp.models.portable import svdexp_experts
from svdexp.models.structure import Targets, find_matrices, stored_bytes
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import DeltaStorage, shared_out
from svdexp.storage.delta import fisher_mean
from tests.conftest import tiny_model
from tests.support.experts import EXPERTS, experts_in, tiny_experts
from tests.support.shrunk import truncated

METHOD = Method("d2_moe", InputMoment(), Uniform(), DeltaStorage())


@pytest.fixture(params=sorted(EXPERTS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def fishers(model: PreTrainedModel, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ over windows of each expert's squared gradient, by autograd on the stacks themselves, in float64."""
    found: dict[str, torch.Tensor] = {}
    model.set_experts_implementation("eager")  # the others know no float64
    by_name = {key: x.requires_grad_() for key, x in model.double().named_parameters() if x.ndim == 3}
    for window in windows:
        model.zero_grad()
        any_model: Any = model
        next_token_loss(any_model(window[None]).logits, window[None]).backward()  # type: ignore[no-untyped-call]
        for key, x in by_name.items():
            assert x.grad is not None
            found[key] = found.get(key, torch.zeros(())) + x.grad.square()
    return found


def test_the_mean_is_the_one_that_loses_least(name: str, windows: torch.Tensor) -> None:
    """By its definition: no entry can be changed without losing more of Σ F (W − W̄)²."""
    model, matrices = tiny_experts(name), experts_in(tiny_experts(name))
    done = compress(model, windows, METHOD, 0.9)
    dense = tiny_experts(name).double()
    information = fishers(tiny_experts(name), windows)
    for stack, members in stacks(matrices).items():
        base: Any = model.get_submodule(stack).base
        transposed = information[stack].shape[1:] != base.shape
        F = information[stack].mT if transposed else information[stack]
        W = torch.stack([matrix.weight(dense) for matrix in members])
        expected = torch.where(F.sum(0) > 0, (F * W).sum(0) / F.sum(0).clamp_min(1e-300), W.mean(0))
        torch.testing.assert_close(base.double(), expected, atol=2e-4, rtol=1e-3)
    assert all(done.ranks[matrix.name] for matrix in matrices)


def test_every_delta_is_the_optimum_under_its_own_inputs(windows: torch.Tensor) -> None:
    model, dense = tiny_experts("qwen3_moe"), tiny_experts("qwen3_moe")
    done = compress(model, windows, METHOD, 0.6)
    layers = find_matrices(dense, Targets())
    statistics = collect(dense, layers, windows, ("gram",))
    for matrix in experts_in(dense):
        rank, stack = done.ranks[matrix.name], model.get_submodule(str(matrix.rivals))
        base: Any = stack.base
        base = base.double()
        assert rank
        C = statistics[matrix.name]["gram"].double()
        values, vectors = torch.linalg.eigh(C)
        root = vectors * values.clamp_min(1e-14 * values.max()).sqrt()
        delta = matrix.weight(dense).double() - base
        S = torch.linalg.svdvals(delta @ root)
        left = ((delta - (matrix.weight(model).double() - base)) @ root).square().sum()
        torch.testing.assert_close(left, S[rank:].square().sum(), rtol=2e-3, atol=1e-12)


def test_full_rank_is_the_identity(name: str) -> None:
    model, tokens = tiny_experts(name), torch.arange(24)[None]
    before = model(tokens).logits
    for members in stacks(experts_in(model)).values():
        base = torch.randn(members[0].m, members[0].n) / 8
        for matrix in members:
            W = matrix.weight(model)
            rest, kept = DeltaStorage().target(W, kept={"base": base})
            U, S, Vt = torch.linalg.svd(rest, full_matrices=False)
            matrix.put(model, DeltaStorage().layer(Factors(U * S, Vt), None, W, kept))
            torch.testing.assert_close(matrix.weight(model), W, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(tokens).logits, before, atol=5e-5, rtol=1e-3)


def test_side_by_side_is_what_one_by_one_is(name: str, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_experts(name)
    compress(model, windows, METHOD, 0.6)
    together = model(windows).logits
    assert any(vars(part).get("groups") for part in model.modules())
    monkeypatch.setattr(svdexp_experts, "_has_grouped_product", lambda x: False)
    torch.testing.assert_close(model(windows).logits, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.8, 0.5])
def test_the_ratio_counts_means_and_deltas(name: str, windows: torch.Tensor, ratio: float) -> None:
    model = tiny_experts(name)
    done = compress(model, windows, METHOD, ratio)
    matrices = [matrix for matrix in find_matrices(tiny_experts(name), Targets()) if matrix.name in done.ranks]
    state = model.state_dict()
    mine = [
        tensor.numel()
        for key, tensor in state.items()
        if key.endswith((".base", ".rank_in.weight", ".rank_out.weight"))
        or key.removesuffix(".weight") in {matrix.name for matrix in matrices}
    ]
    dense = sum(matrix.m * matrix.n for matrix in matrices)
    assert done.achieved_ratio == pytest.approx(sum(mine) / dense, rel=1e-9)
    assert ratio - 0.02 < done.achieved_ratio <= ratio
    assert sum(key.endswith(".base") for key in state) == len(stacks(matrices))


def test_other_allocations_stay_within_the_budget(windows: torch.Tensor) -> None:
    model = tiny_experts("mixtral")
    done = compress(model, windows, Method("d2", InputMoment(), GlobalLoss(), DeltaStorage()), 0.5)
    assert 0.47 < done.achieved_ratio <= 0.5


def test_plain_transformers_loads_what_was_saved(name: str, windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_experts(name)
    done = compress(model, windows, METHOD, 0.6)
    before, size = model(windows).logits, stored_bytes(model)
    label(model, done.ranks)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "svdexp_delta.py").is_file()
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True), svdexp.load(tmp_path)[0]):
        expected = model.state_dict()
        assert again.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
        torch.testing.assert_close(again(windows).logits, before)
    assert stored_bytes(again) == size


def test_the_mean_goes_with_the_last_delta(windows: torch.Tensor) -> None:
    model = tiny_experts("olmoe")
    compress(model, windows, METHOD, 0.6)
    before = model(windows).logits
    for matrix in experts_in(tiny_experts("olmoe")):
        assert [key for key in model.state_dict() if key == f"{matrix.rivals}.base"]
        W = matrix.weight(model)
        matrix.put(model, low_rank_layer(truncated(W, min(W.shape)), None, W))
    assert not [key for key in model.state_dict() if key.endswith(".base")]
    torch.testing.assert_close(model(windows).logits, before, atol=2e-5, rtol=1e-4)


def test_a_copy_of_one_layer_copies_no_other(windows: torch.Tensor) -> None:
    """But a copy of all of them shares nothing with what it was copied from."""
    model = tiny_experts("olmoe")
    matrix = experts_in(model)[0]
    compress(model, windows, METHOD, 0.6)
    layer, twin = matrix.layer(model), copy.deepcopy(model)
    alone = copy.deepcopy(layer)
    assert torch.equal(alone.base, layer.base)
    assert alone.base.data_ptr() == layer.base.data_ptr()
    assert alone.__dict__["stack"] is None
    assert alone.rank_in.weight is not layer.rank_in.weight
    base = matrix.layer(twin).base
    assert base is not layer.base
    assert base is twin.get_submodule(str(matrix.rivals)).base
    assert torch.equal(twin(windows).logits, model(windows).logits)


@pytest.mark.parametrize("trained", [False, True])
def test_a_list_keeps_the_mean_that_it_has(trained: bool) -> None:
    """One without takes that of the first layer that has one, to be trained as its factors are."""
    first, second = (
        DeltaStorage().layer(Factors(torch.randn(4, 2), torch.randn(2, 6)), None, W, {"base": W})
        for W in torch.randn(2, 4, 6)
    )
    mean = first.base.clone()
    stack = svdexp_experts.ExpertList([torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)])
    stack[0], stack[1] = first.requires_grad_(trained), second
    assert torch.equal(stack.base, mean)
    assert stack.base.requires_grad is trained
    assert first.base is second.base is stack.base
    assert len(list(stack.parameters())) == 1 + 2 * 2


def test_statistics_on_the_shelf_give_the_same(windows: torch.Tensor, tmp_path: Path) -> None:
    """The mean is kept once for a stack, not once for each expert."""
    logits = []
    for ratio in (0.8, 0.6, 0.6):
        model = tiny_experts("deepseek_v2")
        compress(model, windows, METHOD, ratio, cache=Cache(tmp_path))
        logits.append(model(windows).logits)
    assert torch.equal(*logits[1:])
    fresh = tiny_experts("deepseek_v2")
    compress(fresh, windows, METHOD, 0.6)
    torch.testing.assert_close(fresh(windows).logits, logits[1], atol=1e-5, rtol=1e-4)


def test_models_without_experts_are_refused_before_anything_runs(windows: torch.Tensor) -> None:
    model = tiny_model("llama_gqa")
    model.forward = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="storage=delta shares a mean among experts, and no matrix"):
        compress(model, windows, METHOD, 0.6)
    with pytest.raises(UserError, match="blockwise runs no backward pass, but the storage needs fisher_sum"):
        Method("d2_moe", InputMoment(), Uniform(), DeltaStorage(), traversal=Traversal.blockwise)


def test_entries_without_a_gradient_have_the_plain_mean() -> None:
    W, F = torch.randn(3, 2, 4), torch.rand(3, 2, 4)
    F[:, 0] = 0
    mean = fisher_mean(list(W), list(F))
    torch.testing.assert_close(mean[0], W[:, 0].double().mean(0))
    torch.testing.assert_close(mean[1], ((F * W)[:, 1].sum(0) / F[:, 1].sum(0)).double(), atol=1e-6, rtol=1e-5)


def test_bits_are_shared_out_to_the_last_one() -> None:
    assert shared_out(10, 4) == [2, 3, 2, 3]
    assert sum(shared_out(1234567, 60)) == 1234567
