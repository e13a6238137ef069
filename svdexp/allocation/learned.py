"""Learned ranks: Dobi-SVD's differentiable truncation positions (arXiv 2502.02723, §3.1).

Every matrix has one trainable number γ, in singular values of a sequence of GAMMA_TOKENS tokens. While it trains, the
layer's output activations are truncated softly at γ (svdexp/factorisation/activation.py); afterwards the matrix gets
the rank γ · min(m, n) / GAMMA_TOKENS. Weights do not train. The loss is

    exp(cross-entropy) + λ |achieved ratio − ratio| + Σ relu(−γ)² + relu(γ − GAMMA_TOKENS)²

minimised with Adam, whose learning rate falls from `lr` to `lr_end` on a cosine.

Ours: γ means the same share of the spectrum for any sequence length and layer shape, where the reference divides by
zero for layers narrower than a sequence; the achieved ratio is the storage's, not a formula; the result is the mean of
γ over the last steps, where the reference takes the ranks that were best on one batch; and those are scaled to meet
the ratio, which the penalty alone misses.
"""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from svdexp.allocation.budget import Budget, Evidence
from svdexp.allocation.curves import RankCurves
from svdexp.allocation.from_gamma import wanted_rank
from svdexp.allocation.rank_schedule import RankSchedule
from svdexp.allocation.rank_training import RankTraining
from svdexp.models.matrices import Ranks
from svdexp.models.work import Work, Workload, eigh_flops, svd_flops

# Stands in for a γ that training made negative: such a layer gets the lowest rank.
TINY = 1e-6


@dataclass(frozen=True)
class Learned(RankSchedule):
    """Train γ on calibration windows."""

    needs_spectra: ClassVar[bool] = False

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        """From the loss of the softly truncated model."""
        return self.learn(budget, evidence)[0]

    def learn(self, budget: Budget, evidence: Evidence) -> tuple[Ranks, RankCurves]:
        """The same, and how it went."""
        budget = budget.aligned(self.rank_align)
        training = RankTraining(self, budget, evidence.model, self.sequences(evidence.windows), evidence.seed)
        about = {"options": asdict(self), "seed": evidence.seed, "storage": repr(budget.storage)}
        shelf = evidence.shelf("learned_ranks", ratio=budget.ratio, layers=list(budget.shapes), **about)
        gamma = training.run(shelf)
        found = zip(gamma.clamp_min(TINY).tolist(), budget.shapes.items(), strict=True)
        return budget.fit({name: wanted_rank(value, *shape) for value, (name, shape) in found}), training.curves()

    def cost(self, workload: Workload) -> Work:
        """Per sequence one pass forward and backward, an SVD of every layer's outputs, and its gradient."""
        length = min(self.seq_len or workload.length, workload.length)
        windows = min(self.windows or workload.windows, workload.windows)
        passes, share = self.epochs * windows * (workload.length // length), length / workload.length
        alone = workload.forward_backward(1)
        work = replace(alone * share, bytes=alone.bytes * share)
        for layer in workload.layers:
            side = min(length, layer.m)
            q = workload.rank(layer) * side / min(layer.m, layer.n)
            svd = 10 * (length + layer.m) * q**2 + svd_flops(q, layer.m) if self.randomised else eigh_flops(side)
            kept = 4 * (length * layer.m + q * (length + layer.m))
            more = Work(float32=20 * length * layer.m * q, eigen=svd)
            work = replace(work + more, bytes=work.bytes + kept)
        return work * passes
