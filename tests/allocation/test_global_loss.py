"""The global optimum against enumeration of every combination of ranks."""

from itertools import product

import pytest
import torch

from svdexp.allocation import Budget, Evidence, GlobalLoss
from svdexp.allocation.global_loss import Trade, choose, multiplier, spend, trades_of
from svdexp.allocation.spectra import tails
from svdexp.models.matrices import Ranks
from svdexp.storage import FactorStorage, Storage
from tests.allocation.fakes import PivotStorage

# A rank of b takes twice the bits of one of a: a price per rank would be another.
SHAPES = {"a": (8, 6), "b": (5, 23), "c": (8, 6)}
RATIOS = [0.3, 0.45, 0.6, 0.75, 0.9]


def spectra(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(min(shape), generator=generator, dtype=torch.float64).mul(3).exp().sort(descending=True)[0]
        for name, shape in SHAPES.items()
    }


def loss(ranks: Ranks, sigma: dict[str, torch.Tensor]) -> float:
    return sum(0.0 if rank is None else float(tails(sigma[name])[rank]) for name, rank in ranks.items())


def enumerated(budget: Budget, limit: float, sigma: dict[str, torch.Tensor]) -> float:
    """The smallest loss of any combination that costs at most `limit`."""
    choices = [[*range(1, min(shape) + 1), None] for shape in budget.shapes.values()]
    combinations = (dict(zip(budget.shapes, ranks, strict=True)) for ranks in product(*choices))
    return min(loss(ranks, sigma) for ranks in combinations if budget.spent(ranks) <= limit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
@pytest.mark.parametrize("beside", [{}, {"c": 100}])  # of two layers of one shape, one is an expert
def test_against_enumeration(beside: dict[str, int], storage: Storage, ratio: float, seed: int) -> None:
    """The priced choice is exactly optimal for the bits it spends; the whole is never worse than that choice.

    And the whole lies between the optimum at the budget and the optimum at what the priced choice spends.
    """
    sigma, budget = spectra(seed), Budget(ratio, SHAPES, storage, beside=beside)
    trades = trades_of(budget, sigma)
    rungs = {
        name: int(rung)
        for trade, part in zip(trades, multiplier(trades, budget.total), strict=True)
        for name, rung in zip(trade.names, part, strict=True)
    }
    priced = {name: budget.ladder(name).rank(rung) for name, rung in rungs.items()}
    spent = budget.spent(priced)
    assert spent <= budget.total
    assert loss(priced, sigma) == pytest.approx(enumerated(budget, spent, sigma))
    ranks = GlobalLoss()(budget, Evidence(None, None, sigma, None))  # type: ignore[arg-type]
    assert budget.spent(ranks) <= budget.total
    assert enumerated(budget, budget.total, sigma) - 1e-9 <= loss(ranks, sigma) <= loss(priced, sigma) + 1e-9


@pytest.mark.parametrize("names", ["ace", "eca"])
def test_what_experts_pay_beside_is_paid_by_nobody_else(names: str) -> None:
    """a has the experts' shape and pays nothing beside its factors, whether it comes first or last."""
    sigma = dict.fromkeys(names, spectra(0)["a"])
    budget = Budget(0.9, dict.fromkeys(names, (8, 6)), FactorStorage(), beside={"c": 300, "e": 299})
    ranks = GlobalLoss()(budget, Evidence(None, None, sigma, None))  # type: ignore[arg-type]
    assert budget.spent(ranks) <= budget.total
    assert loss(ranks, sigma) == pytest.approx(enumerated(budget, budget.total, sigma))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
def test_no_other_price_does_better(storage: Storage, ratio: float) -> None:
    """Against a fine grid of prices: none loses less within the budget."""
    budget = Budget(ratio, SHAPES, storage)
    trades = trades_of(budget, spectra(0))

    def outcome(rungs: list[torch.Tensor]) -> tuple[float, float]:
        pairs = list(zip(trades, rungs, strict=True))
        lost = sum(float(trade.losses.gather(1, part[:, None]).sum()) for trade, part in pairs)
        return lost, sum(float(trade.bits[part].sum()) for trade, part in pairs)

    outcomes = [outcome(choose(trades, 10 ** (exponent / 50))) for exponent in range(-300, 200)]
    best = min(lost for lost, bits in outcomes if bits <= budget.total)
    assert outcome(multiplier(trades, budget.total))[0] <= best + 1e-9


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
def test_loss_falls_with_the_ratio(storage: Storage) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{i}.up": (48, 32) for i in range(12)} | {f"{i}.q": (32, 32) for i in range(12)}
    sigma = {name: torch.rand(32, generator=generator, dtype=torch.float64).sort(descending=True)[0] for name in shapes}
    losses = []
    for step in range(10, 101, 5):
        budget = Budget(step / 100, shapes, storage)
        losses.append(loss(GlobalLoss()(budget, Evidence(None, None, sigma, None)), sigma))  # type: ignore[arg-type]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_all_bits_go_where_they_help() -> None:
    """Two (6, 6) at 0.5: 36 numbers are three ranks of 12; b's second component is worth more than a's."""
    sigma = {"a": torch.tensor([4.0, 1, 0.5, 0.1, 0, 0]), "b": torch.tensor([4.0, 3, 0.5, 0.1, 0, 0])}
    shapes = {"a": (6, 6), "b": (6, 6)}
    ranks = GlobalLoss()(Budget(0.5, shapes, FactorStorage()), Evidence(None, None, sigma, None))  # type: ignore[arg-type]
    assert ranks == {"a": 1, "b": 2}


def test_bits_that_buy_nothing_stay_unspent() -> None:
    sigma = {"a": torch.tensor([2.0, 1.0, 0, 0, 0, 0, 0, 0])}
    ranks = GlobalLoss()(Budget(0.9, {"a": (8, 8)}, FactorStorage()), Evidence(None, None, sigma, None))  # type: ignore[arg-type]
    assert ranks == {"a": 2}


def spent(left: float, **layers: tuple[list[float], list[float]]) -> dict[str, int]:
    """The rungs that `left` bits buy for layers, each of (losses, bits), that stand at their lowest."""
    tables = {name: tuple(map(torch.tensor, numbers)) for name, numbers in layers.items()}
    trades = [Trade([name], losses[None], bits) for name, (losses, bits) in tables.items()]
    lowest = sum(float(trade.bits[0]) for trade in trades)
    return spend(trades, [torch.tensor([0])] * len(trades), lowest + left)


def test_what_is_left_goes_where_a_bit_helps_most() -> None:
    """3 less for 10 bits before 4 less for 40."""
    assert spent(40, a=([3.0, 0], [10.0, 20]), b=([4.0, 0], [10.0, 50])) == {"a": 1, "b": 0}


def test_what_is_lost_all_the_same_buys_nothing() -> None:
    """4 less of b's 4 before 1 less of a's 9."""
    assert spent(10, a=([9.0, 8], [10.0, 20]), b=([4.0, 0], [10.0, 20])) == {"a": 0, "b": 1}


def test_a_climb_may_skip_a_rung_that_alone_helps_little() -> None:
    assert spent(25, a=([5.0, 5, 0], [10.0, 30, 35])) == {"a": 2}


def test_a_twin_does_not_hide_what_comes_after_it() -> None:
    """Two forms of the same bits and loss: a matrix stayed at the first one, whatever was left."""
    assert spent(25, a=([4.0, 4, 0], [10.0, 10, 20])) == {"a": 2}


def test_climbs_go_on_while_they_fit() -> None:
    """One of a's after another; b's first wants 20, and of c's, 9 less for 40 or 1 for 10, only the smaller is left."""
    assert spent(20, a=([4.0, 2, 0], [10.0, 20, 30])) == {"a": 2}
    assert spent(45, b=([8.0, 0], [10.0, 30]), c=([9.0, 8, 0], [10.0, 20, 50])) == {"b": 1, "c": 1}
