"""Removed ratios by theoretical truncation loss: SVD-LLM V2 (arXiv 2503.12340, Algorithm 1).

The paper's, for the matrices w of each type g (all q_proj, all up_proj, …) and the removed ratio R = 1 − ρ:

    L_w = ‖W X − (W X)_k‖_F at the uniform ratio,   ℓ_w = 1 / log L_w,   R_w = |g| R ℓ_w / Σ_{v∈g} ℓ_v

Ours, where the pseudocode is ambiguous or undefined:
- ℓ is taken per matrix.
- X holds all calibration tokens side by side, so L_w² is the tail of the mean spectrum times their number.
- L_w ≤ e counts as e: below, 1 / log L would grow without bound and change sign at L = 1.
- R_w is clipped so that the lowest rank stays; the kept ranks are then scaled by one factor to the budget.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from svdexp.allocation.budget import Budget, SpectralEvidence, by_type
from svdexp.allocation.measured import Measured
from svdexp.allocation.spectra import uniform_errors
from svdexp.models.matrices import Ranks


@dataclass(frozen=True)
class TruncationLoss(Measured):
    """Within each type of layer, less is removed from matrices whose truncation loses more."""

    needs_spectra: ClassVar[bool] = True

    def __call__(self, budget: Budget, evidence: SpectralEvidence) -> Ranks:
        """From the spectra and the number of calibration tokens."""
        budget = budget.aligned(self.rank_align)
        errors = uniform_errors(budget, evidence)
        wanted: dict[str, float] = {}
        for names in by_type(budget.shapes):
            losses = {name: errors[name] for name in names}
            for name, removed in removed_ratios(losses, 1 - budget.ratio).items():
                ladder, dense = budget.ladder(name), budget.dense(name)
                wanted[name] = ladder.real_rank(max((1 - removed) * dense, ladder.bits[0]))
        return budget.fit(wanted)


def removed_ratios(losses: dict[str, float], removed: float) -> dict[str, float]:
    """R_w of the matrices of one type, not yet clipped; their mean is `removed`."""
    inverse = {name: 1 / math.log(max(loss, math.e)) for name, loss in losses.items()}
    scale = len(losses) * removed / sum(inverse.values())
    return {name: scale * value for name, value in inverse.items()}
