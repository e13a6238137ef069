"""IPCA weight update: Dobi-SVD (arXiv 2502.02723, §3.2).

For one sequence the best rank-r truncation of a layer's outputs Y = X Wᵀ (t, m) is Y V Vᵀ with V (m, r) the leading
right singular vectors, that is the weight V Vᵀ W. One V has to serve all sequences: the principal components of all
their vectors, gathered sequence by sequence. Then A = V and B = Vᵀ W exactly.

The sequences run through the truncated model: every layer's outputs are truncated, each sequence with its own V.

Ours: the principal components are exact, because the sum of v vᵀ over all gathered vectors is all that they depend on,
(k, k) with k = min(m, n) however many sequences there are, where the reference merges blocks of components and drops
what does not fit; vectors are not centred, because the sign of a singular vector means nothing; and layers with m > n
work in the n dimensions that their outputs can reach.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from svdexp.factorisation.activation import changed_outputs
from svdexp.factorisation.differentiable_svd import singular_triplets
from svdexp.factorisation.eigen import eigh
from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.path import BlockPath
from svdexp.models.work import Work, Workload, eigh_flops
from svdexp.runtime.errors import require_positive
from svdexp.runtime.progress import progress
from svdexp.update.base import Place, Repair

# Below this ratio of diagonal entries of a Cholesky factor of Pᵀ P, QR: squaring would cost half of all digits.
CONDITION = 1e-5


@dataclass(frozen=True)
class IPCA:
    """Gather singular vectors of output activations and keep their principal components.

    Attributes:
        samples: calibration windows used, at most.
        by_energy: weigh each gathered vector by its singular value; the paper counts all r vectors of a sequence
            alike. With it and untruncated inputs the result is the whitened optimum over all windows.
    """

    samples: int = 256
    by_energy: bool = False
    makes_factors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("method.update.samples", self.samples)

    def cost(self, workload: Workload) -> Work:
        """Per window one pass, and per layer the outputs in k dimensions, their Gram matrix and its eigenvectors."""
        windows = min(self.samples, workload.windows)
        work, held = workload.forward(windows, head=False), 0.0
        for layer in workload.layers:
            m, k, t = layer.m, min(layer.m, layer.n), workload.length
            side = min(t, k)
            each = Work(float32=2 * t * k * layer.n + 4 * t * m * k, float64=2 * t * k * side, eigen=eigh_flops(side))
            work += each * windows + Work(eigen=eigh_flops(k))
            held = max(held, 8.0 * (2 * k * k + 2 * t * k + m * k))
        return work + Work(bytes=held)

    def start(self, model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, ranks: Ranks) -> Repair:
        """The windows wait at the entrance of the first block."""
        return Gathering(self, model, windows[: self.samples], ranks)


class Components:
    """Principal components of one layer's output directions.

    W (m, n) is taken as E S with orthonormal columns E (m, k) and S (k, n), k = min(m, n); everything happens in
    the k coordinates of Z = X Sᵀ, and Y = Z Eᵀ.
    """

    def __init__(self, W: torch.Tensor, rank: int, by_energy: bool):
        W = W.double()
        m, n = W.shape
        self.small = W
        self.lift: Callable[[torch.Tensor], torch.Tensor] = lambda U: U
        if m > n:
            self.small, self.lift = reduced(W)
        self.rank, self.by_energy = rank, by_energy
        self.total = torch.zeros(min(m, n), min(m, n), dtype=torch.float64, device=W.device)

    def truncate(self, X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        """Y (…, t, m) of inputs X (…, t, n), truncated to the rank sequence by sequence; gathers the vectors."""
        sequences = X.reshape(-1, *X.shape[-2:])
        return torch.stack([self._truncate(x) for x in sequences]).reshape(Y.shape)

    def _truncate(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ self.small.to(x.dtype).mT
        _, S, V = singular_triplets(z, min(self.rank, *z.shape))
        gathered = (V * S if self.by_energy else V).double()
        self.total += gathered @ gathered.mT
        return z @ V @ self.lift(V.double()).to(x.dtype).mT

    def factors(self) -> Factors:
        """A = V (m, r), B = Vᵀ W (r, n).

        Where no vector was gathered, as of an expert without tokens, V is that of W itself.
        """
        total = self.total if bool(self.total.any()) else self.small @ self.small.mT
        V = eigh(total)[1].flip(1)[:, : self.rank]
        return Factors(self.lift(V), V.mT @ self.small)


def reduced(P: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """T (n, n) with P = Q T for orthonormal Q (m, n), m > n, and the function U ↦ Q U.

    T is the Cholesky factor of Pᵀ P, several times faster than a QR factorisation, which serves where P is too
    ill-conditioned for its square.
    """
    T, failed = torch.linalg.cholesky_ex(P.mT @ P, upper=True)
    diagonal = T.diagonal()
    if not failed and bool(diagonal.min() > CONDITION * diagonal.max()):
        return T, lambda U: P @ torch.linalg.solve_triangular(T, U, upper=True)
    Q, T = torch.linalg.qr(P)
    return T, lambda U: Q @ U


class Gathering:
    """Sequences on their way through the truncated model, block by block."""

    def __init__(self, options: IPCA, model: PreTrainedModel, windows: torch.Tensor, ranks: Ranks):
        self.options, self.model, self.windows, self.ranks = options, model, windows, ranks
        self.path = BlockPath(model, windows)

    @torch.no_grad()
    def __call__(
        self, group: str, weights: Mapping[str, torch.Tensor], factors: Mapping[str, Factors], place: Place
    ) -> None:
        """Takes the sequences through the block and updates its layers; `factors` are not needed.

        Blocks without a layer to update are never asked for: the sequences go through them on the way.
        """
        inside = group in self.path.blocks
        if inside:
            self.path.reach(group, "IPCA")
        found = {name: Components(W, self.ranks[name] or 0, self.options.by_energy) for name, W in weights.items()}
        with changed_outputs(self.model, {name: part.truncate for name, part in found.items()}):
            if inside:
                self.path.advance("IPCA")
            else:  # a layer outside the blocks, behind all of them
                for window in progress(list(self.windows), f"IPCA {group}"):
                    self.model(window[None].to(self.model.device), use_cache=False)
        for name, part in found.items():
            place(name, part.factors())
