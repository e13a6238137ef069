"""Ranks by block importance and error: Swift-SVD* (arXiv 2604.01609).

Within each type of layer (all q_proj, all up_proj, …), with k̄ the rank at the uniform ratio:

    k_i = δ k̄ + b s_i / Σ_j s_j,   s_i = β_i^α · log(e + ε_i)^{1−α},   b = Σ_j (1 − δ) k̄ the left-over budget

β is ShortGPT's block importance (arXiv 2403.03853), 1 − cos(hidden state before, after the block) averaged over
tokens, min-max scaled over the blocks to [1, 2]; ε_i is the output error ‖W X − (W X)_k̄‖_F.

Ours: ε is taken at k̄ (the released code takes the whole spectrum, log(1 + ‖σ‖)); layers outside the blocks
have β = 1; the k_i are scaled by one factor to the budget after clipping; and α is searched on calibration
windows, as an allocation sees no validation text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation.budget import Aligned, Budget, Evidence, by_type
from svdexp.allocation.spectra import uniform_errors
from svdexp.allocation.trial import trial_perplexity
from svdexp.data import batches
from svdexp.models.matrices import Ranks
from svdexp.models.path import Pass, block_passes
from svdexp.models.structure import find_blocks, named_blocks
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import require, require_positive
from svdexp.runtime.progress import progress

# The paper's grid for α.
ALPHAS = [step / 10 for step in range(11)]


@dataclass(frozen=True)
class Dynamic(Aligned):
    """Part of each rank is uniform, the rest follows importance and error.

    Attributes:
        delta: δ, the share of the rank that every matrix of a type keeps.
        alpha: α in [0, 1], 0 for errors alone, 1 for importance alone; None tries the paper's grid 0, .1, …, 1
            and keeps the one with the lowest perplexity of the truncated model.
        windows: how many calibration windows that search runs on.
    """

    delta: float = 0.5
    alpha: float | None = 0.6
    windows: int = 4
    needs_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.delta <= 1, f"method.allocation.delta must be in [0, 1], not {self.delta:g}")
        if self.alpha is not None:
            require(0 <= self.alpha <= 1, f"method.allocation.alpha must be in [0, 1], not {self.alpha:g}")
        require_positive("method.allocation.windows", self.windows)

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """From the spectra, the hidden states between blocks and, to search α, the truncated model."""
        budget = budget.aligned(self.rank_align)
        raw = evidence.shelf("importance").remember(
            "blocks", lambda: {"raw": block_importance(evidence.model, evidence.windows)}
        )["raw"]
        importance = layer_importance(evidence.model, raw, list(budget.shapes))
        errors = uniform_errors(budget, evidence)

        def ranks(alpha: float) -> Ranks:
            return budget.fit(wanted_ranks(budget, importance, errors, self.delta, alpha))

        def tried(alpha: float) -> float:
            return trial_perplexity(evidence, budget.fixed | ranks(alpha), evidence.windows[: self.windows])

        if self.alpha is not None:
            return ranks(self.alpha)
        return ranks(min(progress(ALPHAS, "alpha"), key=tried))

    def cost(self, workload: Workload) -> Work:
        """One pass for the importance of blocks, and a perplexity of the truncated model per α that is tried."""
        importance = workload.forward(workload.windows, head=False)
        if self.alpha is not None:
            return importance
        trials = len(ALPHAS) * min(self.windows, workload.windows)
        return importance + workload.forward(trials, compressed=True)


def wanted_ranks(
    budget: Budget, importance: Mapping[str, float], errors: Mapping[str, float], delta: float, alpha: float
) -> dict[str, float]:
    """k_i = δ k̄ + b s_i / Σ s per type."""
    wanted: dict[str, float] = {}
    for names in by_type(budget.shapes):
        scores = {n: importance[n] ** alpha * math.log(math.e + errors[n]) ** (1 - alpha) for n in names}
        uniform = {name: budget.uniform_rank(name) for name in names}
        left = (1 - delta) * sum(uniform.values())
        total = sum(scores.values())
        wanted |= {name: delta * uniform[name] + left * scores[name] / total for name in names}
    return wanted


def layer_importance(model: PreTrainedModel, raw: torch.Tensor, names: list[str]) -> dict[str, float]:
    """β per layer: its block's `raw` importance (blocks,) scaled to [1, 2]; 1 outside blocks, or if all are equal."""
    prefix, _ = find_blocks(model)
    low, high = float(raw.min()), float(raw.max())
    scaled = [1 + (float(value) - low) / (high - low) if high > low else 1.0 for value in raw]
    blocks = {f"{prefix}.{index}": beta for index, beta in enumerate(scaled)}
    depth = prefix.count(".") + 2
    return {name: blocks.get(".".join(name.split(".")[:depth]), 1.0) for name in names}


@torch.no_grad()
def block_importance(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """1 − cos(x, block(x)) per block, averaged over all tokens of `windows` (N, L); (blocks,) float64."""
    total = dict.fromkeys(named_blocks(model), 0.0)

    def add(one: Pass) -> None:
        cosine = nn.functional.cosine_similarity(one.state.float(), one.output.float(), dim=-1)
        total[one.block] += float((1 - cosine).double().sum())

    with block_passes(model, add):
        for _, batch in progress(batches(windows), "block importance"):
            model.base_model(batch.to(model.device), use_cache=False)
    return torch.tensor(list(total.values()), dtype=torch.float64) / windows.numel()
