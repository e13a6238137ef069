"""Remapped storage, Dobi-SVD (arXiv 2502.02723, §3.3): 16 · max(m, n) bits a component, so rank r keeps r / min(m, n).

Plain factors take 16 (m + n) bits a component, so half of all ranks cost more than the dense matrix. Here the first
s = min(m, n) entries of both columns of a component share 16-bit places, 8 bits each, and the |m − n| others of the
longer one are float16. The ratio is then r / min(m, n), and every rank below min(m, n) saves.

Ours: one scale a component instead of two. The component is balanced first, so that both 8-bit parts have the same
largest magnitude, and the codes are linear; the reference's are bitsandbytes' dynamic map, which
svdexp/checkpoints/dobi.py reads.
"""

from dataclasses import dataclass
from typing import final

import torch

from svdexp.models.factors import Factors, filled
from svdexp.models.portable.svdexp_remap import RemapLinear
from svdexp.runtime.errors import UserError
from svdexp.runtime.finite import all_finite
from svdexp.storage.base import NUMBER_BITS, Kept, Storage
from svdexp.storage.rounding import rounded_up

CODES = 127  # the largest magnitude of an 8-bit code


@final
@dataclass(frozen=True)
class RemapStorage(Storage):
    """Dobi-SVD's 8- and 16-bit layout, with any method."""

    def bits(self, rank: int, m: int, n: int) -> int:
        """16 max(m, n) bits and a 16-bit scale for each component."""
        return rank * (max(m, n) + 1) * NUMBER_BITS

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> RemapLinear:
        """A layer that holds A B, rounded, and `bias` with the dtype and device of `like`.

        Raises:
            UserError: a factor is not finite, or too large for float16.
        """
        m, n = factors.A.shape[0], factors.B.shape[1]
        parts = remapped(factors)
        if parts is None:
            raise UserError(
                f"storage=remap cannot hold a matrix of shape {(m, n)} at rank {factors.rank}: its factors are not "
                "finite or beyond float16; use storage=factors"
            )
        layer = RemapLinear(n, factors.rank, m, bias is not None, dtype=like.dtype, device="meta")
        return filled(layer, parts | ({} if bias is None else {"bias": bias.detach()}), like)


def remapped(factors: Factors) -> dict[str, torch.Tensor] | None:
    """The buffers of a RemapLinear of A (m, r) and B (r, n); None where they are not finite in float16."""
    A, B = factors.A.double(), factors.B.double()
    side = min(len(A), B.shape[1])
    peak_out, peak_in = A[:side].abs().amax(0), B[:, :side].abs().amax(1)
    # Zero where one of the two is zero in its square part; the other then stays as it is.
    balance = torch.where((peak_out > 0) & (peak_in > 0), (peak_in / peak_out).sqrt(), 1.0)
    A, B = A * balance, B / balance[:, None]
    scale = rounded_up(torch.maximum(peak_out * balance, peak_in / balance) / CODES)
    rest = (A[side:] if len(A) > side else B[:, side:]).half()
    if not all(all_finite(part) for part in (balance, scale, rest)):
        return None
    step = scale.double()  # rounded up, so that no code is beyond CODES
    return {
        "in_codes": _codes(B[:, :side] / step[:, None]),
        "out_codes": _codes(A[:side] / step),
        "rest": rest.contiguous().view(torch.int16),
        "scale": scale.view(torch.int16),
    }


def _codes(values: torch.Tensor) -> torch.Tensor:
    return values.round().to(torch.int8)
