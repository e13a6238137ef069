"""Closed-form refit of the output-side factor: SVD-LLM (2403.07378) §3.3, its step 2.

Earlier truncations shift the inputs of later layers. With X̂ the inputs that a layer really gets and
Ĉ = E[x̂ x̂ᵀ], the best A for given B solves min ‖(W − A B) X̂‖_F, so A = W Ĉ Bᵀ (B Ĉ Bᵀ)⁻¹.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from svdexp.calibration import BlockwiseStatistics
from svdexp.calibration.compressed_path import compressed_path
from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.work import Work, Workload, eigh_flops
from svdexp.runtime.errors import require_positive
from svdexp.update.base import Place, Repair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefitOutput:
    """Refit A layer by layer, each on inputs that all refitted layers before it produce.

    `samples`: calibration windows used; SVD-LLM takes 16.
    """

    samples: int = 16
    makes_factors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("method.update.samples", self.samples)

    def start(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, ranks: Ranks) -> Repair:
        """The windows wait at the entrance of the first block."""
        return Refit(BlockwiseStatistics(model, layers, windows[: self.samples], ("gram",)))

    def cost(self, workload: Workload) -> Work:
        """The inputs, then the algebra."""
        work = compressed_path(workload, self.samples)
        for layer in workload.layers:
            m, n, r = layer.m, layer.n, workload.rank(layer)
            products = 2 * n * n * r + 2 * m * n * r + 2 * n * r * r + 2 * r**3 + 2 * m * r * r
            numbers = 2 * n * n + m * n + 2 * n * r + 6 * r * r + 2 * m * r
            work += Work(float64=products, eigen=eigh_flops(r), bytes=8 * numbers)
        return work


@dataclass(frozen=True)
class Refit:
    """Layers fed by one tensor share one Ĉ; `path` gives it as the compressed blocks produce it."""

    path: BlockwiseStatistics

    def __call__(
        self, group: str, weights: Mapping[str, torch.Tensor], factors: Mapping[str, Factors], place: Place
    ) -> None:
        """All layers as truncation found them, then one refit after the other."""
        for name, pair in factors.items():
            place(name, pair, trial=True)
        for names in self.path.sharing(group):
            truncated = [name for name in names if name in factors]
            if truncated:
                statistics = self.path.statistics(group, truncated)
                for name in truncated:
                    if not bool(statistics[name]["gram"].any()):
                        log.warning("%s was given no token of the update's windows and stays as truncated", name)
                        place(name, factors[name])
                        continue
                    place(name, refit(weights[name], factors[name], statistics[name]["gram"]))


def refit(W: torch.Tensor, factors: Factors, C: torch.Tensor) -> Factors:
    """The A that minimises tr((W − A B) C (W − A B)ᵀ), with the same B; float64.

    Args:
        W: (m, n).
        factors: A (m, r) and B (r, n).
        C: input second moment, (n, n); the minimum-norm solution where it leaves A undetermined.
    """
    B = factors.B.to(W.device, torch.float64)  # which a cache on disk gives on the CPU
    CB = C.double() @ B.mT
    return Factors(W.double() @ CB @ torch.linalg.pinv(B @ CB, hermitian=True), B)
