"""What every allocation promises, on realistic shapes and random decaying spectra."""

import pytest
import torch

from svdexp.allocation import (
    Allocation,
    Budget,
    Dynamic,
    EffectiveRank,
    Evidence,
    GlobalLoss,
    Sensitivity,
    SensitivityMetric,
    TruncationLoss,
    Uniform,
)
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, RTNStorage, Storage
from tests.allocation.fakes import FakeModel, PivotStorage

SHAPES = {
    f"blocks.{i}.{name}": shape
    for i in range(30)
    for name, shape in (
        ("q_proj", (576, 576)),
        ("k_proj", (192, 576)),
        ("v_proj", (192, 576)),
        ("o_proj", (576, 576)),
        ("gate_proj", (1536, 576)),
        ("up_proj", (1536, 576)),
        ("down_proj", (576, 1536)),
    )
}
ALLOCATIONS: list[Allocation] = [
    Uniform(),
    GlobalLoss(),
    EffectiveRank(),
    TruncationLoss(),
    Dynamic(),
    Sensitivity(SensitivityMetric.stable_rank),
]


def decaying(k: int, seed: int) -> torch.Tensor:
    """σᵢ = scale · i^−decay with both drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    decay, scale = (0.3 + 1.2 * torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
    return 10**scale * torch.arange(1, k + 1, dtype=torch.float64) ** -decay


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    spectra = {name: decaying(min(shape), seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    model = FakeModel(blocks=30)
    windows = torch.randint(16, (4, 8), generator=torch.Generator().manual_seed(0))
    return Evidence(model, windows, spectra, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6, 0.8, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_budget_is_met_within_two_permille(
    allocation: Allocation, ratio: float, storage: Storage, evidence: Evidence
) -> None:
    budget = Budget(ratio, SHAPES, storage)
    ranks = allocation(budget, evidence)
    assert ranks.keys() == SHAPES.keys()
    assert ratio * 0.998 <= ratio * budget.spent(ranks) / budget.total <= ratio
    for name, rank in ranks.items():
        assert rank is None or (1 <= rank < min(SHAPES[name]) and budget.bits(name, rank) < budget.dense(name))


@pytest.mark.parametrize("storage", [RTNStorage(4, 32), RTNStorage(8, None)], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_budget_is_met_with_codes(
    allocation: Allocation, ratio: float, storage: RTNStorage, evidence: Evidence
) -> None:
    """Where whole matrices fit, no more is spent than they take."""
    budget = Budget(ratio, SHAPES, storage)
    ranks = allocation(budget, evidence)
    spent = ratio * budget.spent(ranks) / budget.total
    most = ratio * budget.spent(dict.fromkeys(SHAPES)) / budget.total
    assert min(ratio, most) * 0.998 <= spent <= ratio
    for name, rank in ranks.items():
        assert rank is None or (1 <= rank < min(SHAPES[name]) and budget.bits(name, rank) < budget.bits(name, None))


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_ranks_can_be_aligned(allocation: Allocation, evidence: Evidence) -> None:
    budget = Budget(0.6, SHAPES, FactorStorage())
    ranks = type(allocation)(**(vars(allocation) | {"rank_align": 8}))(budget, evidence)  # type: ignore[call-arg]
    assert all(rank is None or rank % 8 == 0 for rank in ranks.values())
    assert 0.6 * 0.998 <= 0.6 * budget.spent(ranks) / budget.total <= 0.6


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_an_impossible_ratio_is_refused(allocation: Allocation, evidence: Evidence) -> None:
    with pytest.raises(UserError, match=r"ratio=0\.001"):
        allocation(Budget(0.001, SHAPES, FactorStorage()), evidence)


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_spectra_of_zeros_are_no_obstacle(allocation: Allocation, evidence: Evidence) -> None:
    """A layer that calibration never reached, or whose weight is zero."""
    zeros = {name: torch.zeros_like(spectrum) for name, spectrum in evidence.spectra.items()}
    budget = Budget(0.5, SHAPES, FactorStorage())
    ranks = allocation(budget, Evidence(evidence.model, evidence.windows, zeros, evidence.truncated))
    assert 0 < budget.spent(ranks) <= budget.total
