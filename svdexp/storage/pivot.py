"""Pivot storage, PIFA (arXiv 2501.19090): a rank-r matrix as r of its own columns or rows and what makes up the others.

W' = A B of shape (m, n) equals P [I C] up to the order of its columns: P (m, r) holds r pivot columns of W' and
C (r, n − r) gives the others as combinations of them. That is r (m + n − r) numbers and an index of n entries
instead of the r (m + n) of plain factors, and nothing is lost. Rows serve as well, by the same on W'ᵀ.

The paper keeps rows. Here the shorter side decides: a shorter index, and less to reorder. Columns reorder the inputs,
rows the outputs.
"""

from dataclasses import dataclass
from typing import final

import torch

from svdexp.models.factors import Factors, filled
from svdexp.models.portable.svdexp_pivot import PivotLinear, RowPivots, index_type, pivot_form
from svdexp.models.work import Work, Workload
from svdexp.runtime.errors import UserError
from svdexp.runtime.finite import all_finite
from svdexp.storage.base import NUMBER_BITS, Kept, Storage

# The largest coefficient that is accepted. Nearer to 1 means less rounding error in 16 bits, and more swaps.
LIMIT = 1.05
# Rounds of swaps before giving up: the first ends them but for rounding, and was enough wherever it was tried.
SWEEPS = 20


@final
@dataclass(frozen=True)
class PivotStorage(Storage):
    """Pivots, coefficients and the index of the shorter side."""

    def bits(self, rank: int, m: int, n: int) -> int:
        """r (m + n − r) numbers and min(m, n) indices."""
        return rank * (m + n - rank) * NUMBER_BITS + min(m, n) * 8 * index_type(min(m, n)).itemsize

    def multiplied(self, rank: int, m: int, n: int) -> int:
        """As many as are stored: a part of the input, or of the output, is only reordered."""
        return rank * (m + n - rank)

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> PivotLinear:
        """A layer that holds A B and `bias` with the dtype and device of `like`.

        Raises:
            UserError: no stable pivots were found.
        """
        m, n = factors.A.shape[0], factors.B.shape[1]
        state = (row_state if pivot_form(m, n) is RowPivots else column_state)(factors, bias)
        if state is None or not all_finite(state["pivots.weight"]):
            raise UserError(
                f"storage=pivot finds no stable pivots in a matrix of shape {(m, n)} at rank {factors.rank}; "
                "use storage=factors"
            )
        layer = PivotLinear.empty(n, factors.rank, m, bias is not None, dtype=like.dtype, device="meta")
        return filled(layer, state | {"order": state["order"].to(index_type(min(m, n)))}, like)

    def cost(self, workload: Workload) -> Work:
        """Per layer QR, LU and a solution on the shorter side, and the pivots' product; swaps are not counted."""
        work = Work()
        for layer in workload.layers:
            short, long = sorted((layer.m, layer.n))
            rank = workload.rank(layer)
            work += Work(float64=2 * long * rank**2, eigen=7 * short * rank**2, bytes=8 * (3 * short + long) * rank)
        return work


def column_state(factors: Factors, bias: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """What a ColumnPivots layer of A B holds; None where no stable pivots were found."""
    found = choose_pivots(factors.B)
    if found is None:
        return None
    order, C = found
    state = {"coefficients.weight": C, "pivots.weight": factors.A @ factors.B[:, order[: factors.rank]]}
    return state | {"order": order} | ({} if bias is None else {"pivots.bias": bias.detach()})


def row_state(factors: Factors, bias: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """What a RowPivots layer of A B holds; None where no stable pivots were found."""
    found = choose_pivots(factors.A.T)
    if found is None:
        return None
    order, C = found
    state = {"coefficients.weight": C.T, "pivots.weight": factors.A[order[: factors.rank]] @ factors.B}
    return state | {"order": order.argsort()} | ({} if bias is None else {"bias": bias.detach()})


def choose_pivots(B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Pivot columns of A B for any A, given B (r, n).

    Let Bᵀ = Q R with orthonormal Q (n, r). The columns of W' = (A Rᵀ) Qᵀ depend on one another as the rows of Q
    do, whatever A is, and Q has full rank even where W' has not. Gaussian elimination with partial pivoting
    chooses r rows of Q, and swaps enlarge their volume until every coefficient is small, which also bounds how
    rounding is amplified.

    Returns:
        The order of columns, (n,), pivots first, and C (r, n − r), float64, no entry of it above LIMIT. None where
        rounding kept the swaps from coming to an end, or B is not finite.
    """
    rank = len(B)
    Q = torch.linalg.qr(B.double().T)[0]
    order, columns = _elimination_order(Q), Q.T.contiguous()  # its rows lie apart, and are slow to gather
    for _ in range(SWEEPS):
        # Ascending within both parts: the gather reads forwards, and ties cannot change what is stored.
        order = torch.cat([order[:rank].sort().values, order[rank:].sort().values])
        # Solved anew, because the updates of swaps gather rounding errors; a singular matrix gives no finite C.
        chosen, others = columns.index_select(1, order[:rank]).T, columns.index_select(1, order[rank:]).T
        C = torch.linalg.solve_ex(chosen, others, left=False)[0]
        if bool((C.abs() <= LIMIT).all()):
            return order, C.T
        order = _swap(order, C)
    return None


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
    swapped, C, rank = order.tolist(), C.clone(), C.shape[1]
    sizes = torch.empty_like(C)
    for _ in swapped:
        i, j = divmod(_first_largest(torch.abs(C, out=sizes)), rank)
        value = float(C[i, j])
        if not abs(value) > LIMIT:
            break
        column, row = C[:, j].clone(), C[i].clone()
        column[i] += 1
        row[j] -= 1
        C.addr_(column, row, alpha=-1 / value)
        swapped[j], swapped[rank + i] = swapped[rank + i], swapped[j]
    return torch.tensor(swapped, device=order.device)


def _first_largest(sizes: torch.Tensor) -> int:
    """The index of the largest entry, in reading order the first of several; on CPUs NumPy is four times as fast."""
    return int(sizes.numpy().argmax() if sizes.device.type == "cpu" else sizes.argmax())
