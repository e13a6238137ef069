"""The ranks that an estimate counts with are those of the run, whatever a rank costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from svdexp.allocation import Budget, GlobalLoss, Uniform, Whole, expected_ranks
from svdexp.cells.guard import config_dir
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.estimate.anatomy import workload_of
from svdexp.factorisation import Identity, InputMoment
from svdexp.method import Method, build
from svdexp.models.structure import Targets
from svdexp.storage import FactorStorage, PivotStorage, RTNStorage, Storage
from tests.conftest import tiny_model
from tests.support.experts import tiny_experts

CHOICES = {path.stem: path for path in sorted((Path(config_dir()) / "storage").glob("*.yaml"))}
SQUARE = {"a": (64, 64), "b": (16, 64)}


def storage_called(name: str) -> Storage:
    options: dict[str, Any] = yaml.safe_load(CHOICES[name].read_text())
    found: Storage = build(options, "storage")
    return found


@pytest.mark.parametrize("ratio", [0.8, 0.4])
@pytest.mark.parametrize("name", sorted(CHOICES.keys() - {"forms", "delta"}))  # of other allocations, and of experts
@pytest.mark.parametrize("architecture", ["llama_gqa", "gpt2"])
def test_estimated_ranks_are_a_uniform_runs(architecture: str, name: str, ratio: float, windows: torch.Tensor) -> None:
    model, targets = tiny_model(architecture), Targets(ranks={"*.1.*": 4})
    method = Method("svd", Identity(), Uniform(), storage_called(name))
    layers, budget, fixed, *_ = plan(model, method, ratio, targets)
    expected = workload_of(model, layers, budget, expected_ranks(method.allocation, budget, fixed), windows=1, length=2)
    done = compress(model, windows, method, ratio, targets=targets)
    assert dict(expected.ranks) == done.ranks
    assert [expected.rank(layer) for layer in layers] == [done.ranks[layer.name] or 0 for layer in layers]
    assert expected.kept_share == pytest.approx(done.achieved_ratio)


def test_estimated_ranks_of_experts_leave_room_for_what_they_share(windows: torch.Tensor) -> None:
    model = tiny_experts("qwen3_moe")
    method = Method("d2_moe", InputMoment(), Uniform(), storage_called("delta"))
    layers, budget, fixed, *_ = plan(model, method, 0.6, Targets())
    ranks = expected_ranks(method.allocation, budget, fixed)
    expected = workload_of(model, layers, budget, ranks, windows=1, length=2)
    done = compress(model, windows, method, 0.6)
    assert dict(expected.ranks) == done.ranks
    assert expected.kept_share == pytest.approx(done.achieved_ratio)


def test_ranks_are_as_coarse_as_the_runs() -> None:
    budget = Budget(0.5, SQUARE, FactorStorage())
    for allocation in (Uniform(rank_align=4), GlobalLoss(rank_align=4)):
        ranks = expected_ranks(allocation, budget, {})
        assert ranks == {"a": 16, "b": 4}
    assert expected_ranks(Uniform(), budget, {}) != ranks


def test_matrices_that_an_allocation_keeps_whole_have_none() -> None:
    budget = Budget(0.6, SQUARE, RTNStorage(8))
    assert expected_ranks(Whole(), budget, {"a": 3}) == {"a": 3, "b": None}


def test_a_share_below_the_lowest_rank_is_paid_for_by_others() -> None:
    """Uniform refuses that; an allocation that moves bits does not."""
    budget = Budget(0.05, SQUARE, FactorStorage())
    with pytest.raises(Exception, match="without a single rank"):
        Uniform().ranks(budget)
    assert expected_ranks(GlobalLoss(), budget, {}) == {"a": 1, "b": 1}


def test_a_pivot_layer_multiplies_by_what_it_stores_and_others_by_plain_factors() -> None:
    assert PivotStorage().multiplied(3, 5, 7) == 3 * (5 + 7 - 3)
    assert FactorStorage().multiplied(3, 5, 7) == RTNStorage(8).multiplied(3, 5, 7) == 3 * (5 + 7)
