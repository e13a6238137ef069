"""How a matrix in codes multiplies: by the route that is fastest.

    reference   codes become numbers, which multiply as those of a dense layer do
    decoded     the same numbers, made by a compiled operator in memory that is used again
    operator    a compiled operator multiplies by the codes as they lie in the file
    packed      torch's own products of codes, which want them in another order: a copy, made at the first token

RULES is the one table; docs/speed.md has the measurements. All routes give the same but for rounding, `decoded` the
very same. What is traced, trained or elsewhere than on a CPU goes by the reference.
"""

from collections.abc import MutableMapping
from threading import local
from typing import Any, NamedTuple

import torch
from torch import nn

from .svdexp_bits import unpack
from .svdexp_operator import OPERATORS, ready
from .svdexp_products import OPERATOR, REFERENCE, is_open

PACKED, DECODED = "packed", "decoded"


class Rule(NamedTuple):
    """The route in the number formats `dtypes` for at most `most` tokens; None: for any number."""

    route: str
    dtypes: tuple[torch.dtype, ...]
    most: int | None


NUMBERS = (torch.float32, torch.bfloat16, torch.float16)
# The first that can be gone is taken.
RULES = (
    Rule(OPERATOR, NUMBERS, 8),
    Rule(DECODED, NUMBERS, None),
    Rule(PACKED, (torch.bfloat16,), 32),
)
# What torch's products take: groups of these sizes, and TILE rows of 4-bit codes, or 8-bit codes in a row, at once.
GROUPS = (32, 64, 128, 256)
TILE = 16


class Codes(NamedTuple):
    """A matrix (m, n) in codes, as svdexp_quantised.py packs them.

    Attributes:
        codes: packed, row by row, a byte each.
        scale: (m, groups), float16 in int16's clothes.
        zero: the code of zero of each group, packed; None where it is the one in the middle.
        bits: of a code.
        group: how many codes in a row share a scale; None: all.
        width: n.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    bits: int
    group: int | None
    width: int

    @property
    def rows_are_bytes(self) -> bool:
        """Whether each row, and each group, begins with a byte."""
        return not (self.width * self.bits % 8 or (self.scale.shape[1] > 1 and (self.group or 0) * self.bits % 8))


def route(x: torch.Tensor, W: Codes, bias: torch.Tensor | None = None) -> str:
    """By which route W x + b is computed for x (…, n)."""
    if not is_open(x, bias) or torch.is_autocast_enabled("cpu") or not W.codes.is_cpu or x.numel() == 0:
        return REFERENCE
    if bias is not None and bias.dtype is not x.dtype:
        return REFERENCE
    tokens, compiling = x.numel() // x.shape[-1], torch.compiler.is_compiling()
    for rule in RULES:
        if x.dtype in rule.dtypes and (rule.most is None or tokens <= rule.most):
            able = packable(W) if rule.route == PACKED else W.rows_are_bytes and ready()
            if able and not (compiling and rule.route != OPERATOR):
                return rule.route
    return REFERENCE


def multiplied(
    W: Codes, x: torch.Tensor, bias: torch.Tensor | None, how: str, kept: MutableMapping[str, Any], side: str
) -> torch.Tensor:
    """W x + b, (…, n) → (…, m), by a route other than the reference; `kept` has under `side` what was packed of W."""
    if how == OPERATOR:
        return OPERATORS["coded"](x, W.codes, W.scale, W.zero, W.bits, W.group or 0, bias)
    if how == DECODED:
        numbers = lent((len(W.scale), W.width), x.dtype)
        OPERATORS["decode"](numbers, W.codes, W.scale, W.zero, W.bits, W.group or 0)
        return nn.functional.linear(x, numbers, bias)
    marks = [(part.data_ptr(), 0 if part.is_inference() else part._version) for part in W[:3] if part is not None]
    if side not in kept or kept[side][0] != marks:
        with torch.inference_mode(False), torch.no_grad():
            kept[side] = marks, packed(W)
    y: torch.Tensor = kept[side][1](x.reshape(-1, W.width)).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def corrected(Q: Codes, B: Codes, A: Codes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Q x + A (B x) + b, (…, n) → (…, m), by one operator; None where it is not to be, or cannot."""
    if B.zero is not None or A.zero is not None or not (B.rows_are_bytes and A.rows_are_bytes):
        return None
    if route(x, Q, bias) != OPERATOR:
        return None
    factors = (B.codes, B.scale, A.codes, A.scale, A.bits, A.group or 0)
    return OPERATORS["corrected"](x, Q.codes, Q.scale, Q.zero, Q.bits, Q.group or 0, *factors, bias)


LENT = local()  # under `bytes` the memory that the numbers of one matrix after the other have, in each thread


def lent(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a matrix until the next one is wanted in this thread."""
    size = shape[0] * shape[1] * dtype.itemsize
    if not hasattr(LENT, "bytes") or len(LENT.bytes) < size:
        with torch.inference_mode(False):
            LENT.bytes = torch.empty(size, dtype=torch.uint8)
    found: torch.Tensor = LENT.bytes[:size].view(dtype).view(shape)
    return found


def packable(W: Codes) -> bool:
    """Whether torch has a product for such codes: of a scale a row, or in groups of a multiple of 32."""
    grouped = W.scale.shape[1] > 1
    if grouped and (W.group or 0) % GROUPS[0]:
        return False
    return W.bits <= HALF or W.zero is None


def packed(W: Codes) -> "EightBits | FourBits | Halves":
    """W as torch's products in bfloat16 want it: x (tokens, n) → (tokens, m)."""
    m, groups = W.scale.shape
    codes = unpack(W.codes, m * W.width, W.bits).view(m, W.width).int()
    scale, middle = W.scale.view(torch.float16).float(), 1 << W.bits - 1
    if W.bits > HALF and groups == 1:
        filled = nn.functional.pad((codes - middle).to(torch.int8), (0, -W.width % TILE))
        return EightBits(filled, scale[:, 0].bfloat16())
    if W.bits > HALF:
        # in two halves of four bits, s (c − z) = 16 s (h − 8) + s (l − 8) + 8 s
        codes = codes - middle + 128
        return Halves(four_bits(codes >> 4, W.group, 16 * scale, 0), four_bits(codes & 15, W.group, scale, 8))
    offset = 0 if W.zero is None else middle - unpack(W.zero, scale.numel(), W.bits).view(scale.shape).int()
    return four_bits(codes - middle + 8, W.group, scale, offset)


HALF = 4  # bits of the codes of torch's products of a scale a group


class EightBits(NamedTuple):
    """Codes (m, n) int8, rows filled up, and a scale a row, (m,)."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, n) → (tokens, m)."""
        x = nn.functional.pad(x, (0, self.codes.shape[1] - x.shape[1]))
        return torch._weight_int8pack_mm(x, self.codes, self.scale)


class FourBits(NamedTuple):
    """Codes of four bits in torch's order, and of each group and row a scale and what is added, (groups, rows, 2)."""

    codes: torch.Tensor
    levels: torch.Tensor
    group: int
    rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, n) → (tokens, m)."""
        x = nn.functional.pad(x, (0, len(self.levels) * self.group - x.shape[1]))
        return torch._weight_int4pack_mm_for_cpu(x, self.codes, self.group, self.levels)[:, : self.rows]


class Halves(NamedTuple):
    """Codes of up to eight bits as two of four."""

    high: FourBits
    low: FourBits

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, n) → (tokens, m)."""
        return self.high(x) + self.low(x)


def four_bits(codes: torch.Tensor, group: int | None, scale: torch.Tensor, offset: torch.Tensor | int) -> FourBits:
    """scale · (codes − 8 + offset) of codes (m, n) with `scale` and `offset` (m, groups), rows and groups filled up."""
    (m, n), alone = codes.shape, scale.shape[1] == 1
    whole = [size for size in GROUPS if (alone or (group or 0) % size == 0) and n % size == 0]
    size = max(whole, default=GROUPS[0])
    rows, columns = -m % TILE, -n % size
    levels = torch.stack([scale, scale * offset], dim=-1)
    levels = levels.repeat_interleave((n + columns) // size if alone else (group or 0) // size, dim=1)
    levels = nn.functional.pad(levels[:, : (n + columns) // size], (0, 0, 0, 0, 0, rows))
    packed = torch._convert_weight_to_int4pack_for_cpu(nn.functional.pad(codes, (0, columns, 0, rows), value=8), 1)
    return FourBits(packed, levels.transpose(0, 1).bfloat16().contiguous(), size, m)
