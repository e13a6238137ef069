"""Pivot storage, PIFA (arXiv 2501.19090): a rank-r matrix as r of its own columns and what makes up the others.

W' = A B of shape (m, n) equals P [I C] up to the order of its columns: P (m, r) holds r pivot columns of W' and
C (r, n − r) gives the others as combinations of them. That is r (m + n − r) numbers and an index of n entries
instead of the r (m + n) of plain factors, and nothing is lost.

The paper keeps rows. Columns cost as much, leave the bias where a linear layer has it, and gather inputs instead of
scattering outputs; on synthetic layers with outlier input channels they also rounded to bfloat16 with less error.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from svdexp.errors import UserError
from svdexp.models.low_rank import Factors

INDEX_BITS = 32
# The largest coefficient that is accepted. Nearer to 1 means less rounding error in 16 bits, and more swaps.
LIMIT = 1.05
# Rounds of swaps before giving up: the first ends them but for rounding, and was enough wherever it was tried.
SWEEPS = 20


class PivotLinear(nn.Module):
    """y = P (x[pivots] + C x[others]) + b.

    Two nn.Linear children, as in LowRankLinear, and `order`, (n,) int32: the r pivots, then the others.
    """

    kind: ClassVar[str] = "pivot"
    order: torch.Tensor

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__()
        self.rank = rank
        self.coefficients = nn.Linear(n - rank, rank, bias=False, **kwargs)
        self.pivots = nn.Linear(rank, m, bias=bias, **kwargs)
        # An integer buffer is saved, moved with the layer, and left alone by casts to another number format.
        self.register_buffer("order", torch.arange(n, dtype=torch.int32, device=kwargs.get("device")))

    @classmethod
    def from_factors(cls, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> "PivotLinear":
        """A layer that holds A B and `bias` with the dtype and device of `like`.

        Raises:
            UserError: no stable pivots were found.
        """
        m, n = factors.A.shape[0], factors.B.shape[1]
        order, C = choose_pivots(factors)
        layer = cls(n, factors.rank, m, bias is not None, dtype=like.dtype, device="meta")
        state = {"coefficients.weight": C, "pivots.weight": factors.A @ factors.B[:, order[: factors.rank]]}
        if bias is not None:
            state["pivots.bias"] = bias.detach()
        state = {key: value.to(like.device, like.dtype).contiguous() for key, value in state.items()}
        layer.load_state_dict(state | {"order": order.to(like.device, torch.int32)}, assign=True)
        return layer.requires_grad_(like.requires_grad)

    @property
    def weight(self) -> torch.Tensor:
        """W', (m, n), its columns in their own places."""
        P = self.pivots.weight
        return torch.cat([P, P @ self.coefficients.weight], dim=1)[:, self.order.argsort()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        # Indexing, because index_select takes two to three times as long on prefill activations on a CPU.
        pivots, others = torch.split(x[..., self.order], [self.rank, self.coefficients.in_features], dim=-1)
        y: torch.Tensor = self.pivots(pivots + self.coefficients(others))
        return y

    def validate(self) -> None:
        """Check what a file may have put into `order`.

        Raises:
            UserError: it is not a permutation.
        """
        n = self.rank + self.coefficients.in_features
        if not torch.equal(self.order.sort().values, torch.arange(n, dtype=torch.int32, device=self.order.device)):
            raise UserError(f"the order of its columns is not a permutation of {n} indices")


@dataclass(frozen=True)
class PivotStorage:
    """Pivot columns, coefficients and the index of columns."""

    def bits(self, rank: int, m: int, n: int, number_bits: int) -> int:
        """r (m + n − r) numbers and n indices."""
        return rank * (m + n - rank) * number_bits + n * INDEX_BITS

    def layer(self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor) -> PivotLinear:
        """Two linear layers behind a gather."""
        return PivotLinear.from_factors(factors, bias, like)


def empty_pivot_layer(m: int, n: int, rank: int, bias: bool, **kwargs: Any) -> PivotLinear:
    """A layer of the right shapes for a checkpoint to fill."""
    return PivotLinear(n, rank, m, bias, **kwargs)


def choose_pivots(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of columns, (n,), pivots first, and C (r, n − r), float64, no entry of it above LIMIT.

    Let Bᵀ = Q R with orthonormal Q (n, r). The columns of W' = (A Rᵀ) Qᵀ depend on one another as the rows of Q
    do, whatever A is, and Q has full rank even where W' has not. Gaussian elimination with partial pivoting
    chooses r rows of Q, and swaps enlarge their volume until every coefficient is small, which also bounds how
    rounding is amplified.

    Raises:
        UserError: rounding kept the swaps from coming to an end, or the factors are not finite.
    """
    rank = factors.rank
    Q = torch.linalg.qr(factors.B.double().T)[0]
    order = _elimination_order(Q)
    for _ in range(SWEEPS):
        # Ascending within both parts: the gather reads forwards, and ties cannot change what is stored.
        order = torch.cat([order[:rank].sort().values, order[rank:].sort().values])
        # Solved anew, because the updates of swaps gather rounding errors; a singular matrix gives no finite C.
        C = torch.linalg.solve_ex(Q[order[:rank]], Q[order[rank:]], left=False)[0]
        if bool((C.abs() <= LIMIT).all()):
            return order, C.T
        order = _swap(order, C)
    shape = (factors.A.shape[0], factors.B.shape[1])
    raise UserError(
        f"storage=pivot finds no stable pivots in a matrix of shape {shape} at rank {rank}; use storage=factors"
    )


def _elimination_order(Q: torch.Tensor) -> torch.Tensor:
    """The rows of Q (n, r) in the order in which LU with partial pivoting leaves them, (n,)."""
    exchanges = torch.linalg.lu_factor(Q)[1].tolist()
    order = list(range(len(Q)))
    for row, other in enumerate(exchanges):  # LAPACK counts from 1
        order[row], order[other - 1] = order[other - 1], order[row]
    return torch.tensor(order, device=Q.device)


def _swap(order: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """The order after exchanging pivots with others, largest coefficient of C (n − r, r) first.

    Each swap multiplies the volume of the pivot rows by |c| > LIMIT, so only so many fit (Gu and Eisenstat's
    strong rank-revealing QR, doi 10.1137/0917055; Goreinov and others' maxvol, doi 10.1142/9789812836021_0015).
    C follows by a rank-one update.
    """
    order, C, rank = order.clone(), C.clone(), C.shape[1]
    for _ in range(len(order)):
        i, j = divmod(int(C.abs().argmax()), rank)
        value = float(C[i, j])
        if not abs(value) > LIMIT:
            break
        column, row = C[:, j].clone(), C[i].clone()
        column[i] += 1
        row[j] -= 1
        C.addr_(column, row, alpha=-1 / value)
        order[[j, rank + i]] = order[[rank + i, j]]
    return order
