"""Ranks by information density: D-Rank (arXiv 2509.25622).

    R = exp H(σ² / Σ σ²),   k ∝ √(R / ω),   ω = m + n the numbers that one rank costs

which minimises Σ R / k under Σ k ω = const. A fraction of the ranks of the queries and keys then moves to the
values, which the paper finds to be the most informative of the three.

Ours: matrices are not concatenated across layers, so a group is one matrix. Ranks move as numbers, k ω, within
one parent module, because under grouped-query attention queries and values differ in shape; where all shapes
are equal that is the paper's rule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from svdexp.allocation.budget import Aligned, Budget, SpectralEvidence
from svdexp.allocation.spectra import effective_rank
from svdexp.models.matrices import Ranks
from svdexp.models.structure import matches
from svdexp.runtime.errors import require


@dataclass(frozen=True)
class EffectiveRank(Aligned):
    """k ∝ √(R / ω), scaled to the budget.

    Attributes:
        move: the fraction of ranks that moves; .3 to .4 in the paper, 0 moves nothing.
        move_from, move_to: fnmatch patterns over layer names; a parent module without both moves nothing.
    """

    move: float = 0.3
    move_from: list[str] = field(default_factory=lambda: ["*q_proj", "*k_proj"])
    move_to: list[str] = field(default_factory=lambda: ["*v_proj"])
    needs_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.move < 1, f"method.allocation.move must be in [0, 1), not {self.move:g}")

    def __call__(self, budget: Budget, evidence: SpectralEvidence) -> Ranks:
        """From the spectra alone."""
        weights = {name: sum(shape) for name, shape in budget.shapes.items()}
        wanted = {name: math.sqrt(effective_rank(evidence.spectra[name]) / weights[name]) for name in budget.shapes}
        moved = move_ranks(wanted, weights, self.move, self.move_from, self.move_to)
        return budget.aligned(self.rank_align).fit(moved)


def move_ranks(
    wanted: Mapping[str, float],
    weights: Mapping[str, int],
    fraction: float,
    sources: Sequence[str],
    receivers: Sequence[str],
) -> dict[str, float]:
    """Move `fraction` of the ranks of layers that match `sources` to those that match `receivers`.

    Σ k ω is preserved: what the sources of a parent module give up, its receivers share evenly.
    """
    result = dict(wanted)
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in wanted):
        members = [name for name in wanted if name.rpartition(".")[0] == parent]
        takers = [name for name in members if matches(name, receivers)]
        givers = [name for name in members if matches(name, sources) and name not in takers]
        if not takers:
            continue
        for name in givers:
            result[name] -= fraction * wanted[name]
            for taker in takers:
                result[taker] += fraction * wanted[name] * weights[name] / weights[taker] / len(takers)
    return result
