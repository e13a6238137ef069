"""The ranks that minimise the summed loss of all matrices under one budget.

    minimise Σ_k tail_k(r_k)   subject to Σ_k bits_k(r_k) ≤ budget,   tail_k(r) = Σ_{i>r} σᵢ²

For a price λ per bit the problem falls apart: each matrix takes the r, dense included, that minimises
tail(r) + λ bits(r). What that choice costs falls as λ grows, so λ is bisected until the budget is met
(Everett's generalised Lagrange multipliers, Operations Research 11, 1963): the result is the exact optimum for
the bits that it spends. Direct minimisation over all r needs no convexity, so any storage will do.

The sum is meaningful where all tails are in one unit, as with the gradient-weighted metric, whose tails
estimate the increase of the model's loss.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from svdexp.allocation.budget import Budget, Ladder, SpectralEvidence
from svdexp.allocation.measured import Measured
from svdexp.allocation.spectra import tails
from svdexp.models.matrices import Ranks


@dataclass(frozen=True)
class Trade:
    """What all layers with one ladder lose and cost at each rung of it.

    Attributes:
        names: G layers.
        losses: (G, K), descending along the rungs; the last is dense, which loses nothing.
        bits: (K,).
    """

    names: Sequence[str]
    losses: torch.Tensor
    bits: torch.Tensor


@dataclass(frozen=True)
class GlobalLoss(Measured):
    """Minimises the summed truncation loss."""

    needs_spectra: ClassVar[bool] = True

    def __call__(self, budget: Budget, evidence: SpectralEvidence) -> Ranks:
        """The optimum for a price per bit, then what is left goes where a bit helps most."""
        budget = budget.aligned(self.rank_align)
        budget.lowest()
        trades = trades_of(budget, evidence.spectra)
        rungs = spend(trades, multiplier(trades, budget.total), budget.total)
        return {name: budget.ladder(name).rank(rungs[name]) for name in budget.shapes}


def trades_of(budget: Budget, spectra: Mapping[str, torch.Tensor]) -> list[Trade]:
    """One table per ladder: of one shape there are several where experts pay for what they keep together."""
    groups: dict[Ladder, list[str]] = {}
    for name in budget.shapes:
        groups.setdefault(budget.ladder(name), []).append(name)
    trades = []
    for ladder, names in groups.items():
        ranks = torch.tensor(ladder.ranks[:-1], dtype=torch.int64)
        losses = torch.zeros(len(names), len(ladder.bits), dtype=torch.float64)
        for row, name in zip(losses, names, strict=True):
            row[:-1] = tails(spectra[name])[ranks]
        trades.append(Trade(names, losses, torch.tensor(ladder.bits, dtype=torch.float64)))
    return trades


def choose(trades: Sequence[Trade], price: float) -> list[torch.Tensor]:
    """Per table the rungs (G,) that minimise loss + price · bits; of equals the cheapest."""
    return [(trade.losses + price * trade.bits).argmin(1) for trade in trades]


def multiplier(trades: Sequence[Trade], total: float) -> list[torch.Tensor]:
    """The rungs at the lowest price λ at which they cost at most `total`; the lowest rungs must fit."""

    def cost(rungs: list[torch.Tensor]) -> float:
        return sum(float(trade.bits[part].sum()) for trade, part in zip(trades, rungs, strict=True))

    if cost(free := choose(trades, 0.0)) <= total:
        return free
    # At `high` one bit is worth more than any matrix's whole loss, so everything is at its cheapest.
    high = 2 * max(float(trade.losses.max()) for trade in trades)
    low = 1e-40 * high
    for _ in range(80):
        middle = (low * high) ** 0.5  # prices span many orders of magnitude
        low, high = (low, middle) if cost(choose(trades, middle)) <= total else (middle, high)
    return choose(trades, high)


def spend(trades: Sequence[Trade], rungs: Sequence[torch.Tensor], total: float) -> dict[str, int]:
    """Spend what is left of `total` on the climbs that lower the loss most per bit.

    A climb may skip rungs, because a storage's steps may become cheaper with rank. Bits that would lower no
    loss stay unspent.
    """
    where = {name: (trade, row) for trade in trades for row, name in enumerate(trade.names)}
    result = {
        n: int(r) for trade, part in zip(trades, rungs, strict=True) for n, r in zip(trade.names, part, strict=True)
    }
    left = total - sum(float(trade.bits[result[name]]) for name, (trade, _) in where.items())

    heap: list[tuple[float, str, int]] = []

    def offer(name: str) -> None:
        """Put the layer's best affordable climb on the heap."""
        trade, row = where[name]
        now = result[name]
        steps = trade.bits[now + 1 :] - trade.bits[now]
        steps = steps[: int(torch.searchsorted(steps, left, right=True))]
        if len(steps):
            gains = (trade.losses[row, now] - trade.losses[row, now + 1 :][: len(steps)]) / steps
            # of two forms that take and lose the same: 0 / 0, which `max` would give in the place of all others
            gain, best = gains.where(~gains.isnan(), 0.0).max(0)
            if gain > 0:
                heapq.heappush(heap, (-float(gain), name, now + 1 + int(best)))

    for name in where:
        offer(name)
    while heap:
        _, name, rung = heapq.heappop(heap)
        trade, _ = where[name]
        step = float(trade.bits[rung] - trade.bits[result[name]])
        if step <= left:
            left -= step
            result[name] = rung
        offer(name)  # its next climb, or a smaller one where this no longer fitted
    return result
