"""Layers of ours as blocks of ggml, llama.cpp's tensor library.

A tensor of type Q4_0, Q5_0 or Q8_0 is d · (q − zero) with one float16 d for 32 neighbours in a row; Q4_1 and Q5_1 are
d · q + m with a float16 m, too. Codes of ours whose groups are multiples of 32 are such numbers to the last bit: a step
is repeated for every block of its group, codes of 2 and 3 bits take the room of 4, and a zero point is taken off the
codes where the difference fits. All else is rounded.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quantize
from torch import nn

from svdexp.models.portable.svdexp_bits import middle, unpack, widened
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.portable.svdexp_scaled import ScaledLinear

BLOCK = 32  # codes
# By the bits of our codes.
ROOM = {2: Type.Q4_0, 3: Type.Q4_0, 4: Type.Q4_0, 5: Type.Q5_0, 6: Type.Q8_0, 8: Type.Q8_0}
MINIMUM = {4: Type.Q4_1, 5: Type.Q5_1}  # with zero points
ZERO = {Type.Q4_0: 8, Type.Q5_0: 16, Type.Q8_0: 0}  # the code of zero
LARGEST = {Type.Q4_0: 7, Type.Q5_0: 15, Type.Q8_0: 127}  # of q less that
PLAIN = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}


class Fidelity(StrEnum):
    """What of our numbers a tensor holds."""

    exact = "all bits"
    minimum = "the codes and steps, and zero points rounded to 16 bits"
    again = "numbers rounded again, to 8 bits"


@dataclass(frozen=True)
class Blocks:
    """A matrix (m, n) as ggml has it.

    Attributes:
        type: of all its blocks.
        data: the bytes of its rows, uint8 (m, bytes).
        fidelity: what they hold of the layer that they were made of.
    """

    type: Type
    data: torch.Tensor
    fidelity: Fidelity = Fidelity.exact

    def ordered(self, rows: torch.Tensor) -> "Blocks":
        """With `rows` (m,) in the place of rows 0, 1, …"""
        return Blocks(self.type, self.data[rows], self.fidelity)


def whole(layer: QuantisedLinear) -> Blocks:
    """The matrix that `layer` holds whole, in codes."""
    found = None
    if fits(layer, "out"):
        with_zeros = layer.zero_points and layer.code_bits in MINIMUM
        found = (
            with_minimum(layer, MINIMUM[layer.code_bits]) if with_zeros else coded(layer, "out", ROOM[layer.code_bits])
        )
    return rounded_again(layer.factor("out", torch.float32)) if found is None else found


def pair(layer: nn.Module) -> tuple[Blocks, Blocks]:
    """A (m, r) and B (r, n) of a layer of factors, plain or in codes: the latter as Q8_0, or as plain numbers."""
    if isinstance(layer, QuantisedLinear):
        out, in_ = ((coded(layer, side) if fits(layer, side) else None) for side in ("out", "in"))
        return out or numbers(layer.factor("out", torch.float32)), in_ or numbers(layer.factor("in", torch.float32))
    sides = layer.get_parameter("rank_out.weight"), layer.get_parameter("rank_in.weight")
    return numbers(sides[0].detach()), numbers(sides[1].detach())


def fits(layer: QuantisedLinear, side: str) -> bool:
    """Whether the steps of a factor, or of the matrix, are those of blocks."""
    columns, size = layer.shapes[side][1], layer.group_size
    return columns % BLOCK == 0 and (size is None or size % BLOCK == 0) and not isinstance(layer, ScaledLinear)


def coded(layer: QuantisedLinear, side: str, kind: Type = Type.Q8_0) -> Blocks | None:
    """The codes in blocks of `kind`, without a minimum; None where one is too far from its zero point."""
    columns = layer.shapes[side][1]
    zero = widened(layer.zero(side).int(), columns, layer.group_size) if layer.zero_points else middle(layer.code_bits)
    codes = integers(layer, side) - zero
    if codes.max() > LARGEST[kind] or codes.min() < -LARGEST[kind] - 1:
        return None
    data = [_bytes(steps(layer, side)), _packed(codes + ZERO[kind], kind)]
    return Blocks(kind, torch.cat(data, dim=-1).flatten(1))


def with_minimum(layer: QuantisedLinear, kind: Type) -> Blocks:
    """Codes of a whole matrix with zero points."""
    d, columns = steps(layer, "out"), layer.shapes["out"][1]
    zero = widened(layer.zero("out").float(), columns, layer.group_size).expand(-1, columns)[:, ::BLOCK, None]
    m = (-zero * d.float()).half()
    data = [_bytes(d), _bytes(m), _packed(integers(layer, "out"), kind)]
    return Blocks(kind, torch.cat(data, dim=-1).flatten(1), Fidelity.minimum)


def integers(layer: QuantisedLinear, side: str) -> torch.Tensor:
    """The codes, int32 (m, n)."""
    rows, columns = layer.shapes[side]
    return unpack(layer.get_buffer(f"{side}_codes"), rows * columns, layer.code_bits).view(rows, columns).int()


def steps(layer: QuantisedLinear, side: str) -> torch.Tensor:
    """The step of every block, float16 (m, blocks, 1)."""
    columns = layer.shapes[side][1]
    scale = layer.get_buffer(f"{side}_scale").view(torch.float16)
    return widened(scale, columns, layer.group_size).expand(-1, columns)[:, ::BLOCK, None].contiguous()


def rounded_again(W: torch.Tensor) -> Blocks:
    """The numbers of W in Q8_0, or in float16 where its rows are not made of whole blocks."""
    if W.shape[1] % BLOCK:
        return Blocks(Type.F16, _bytes(W.half()), Fidelity.again)
    return Blocks(Type.Q8_0, torch.from_numpy(quantize(W.numpy(), Type.Q8_0)), Fidelity.again)


def numbers(W: torch.Tensor) -> Blocks:
    """The numbers of W as they are."""
    return Blocks(PLAIN[W.dtype], _bytes(W))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    raw: torch.Tensor = tensor.contiguous().view(torch.uint8)
    return raw


def _packed(codes: torch.Tensor, kind: Type) -> torch.Tensor:
    """Codes int (m, n) in the order of ggml's blocks, uint8 (m, blocks, bytes)."""
    blocks = codes.view(len(codes), -1, BLOCK)
    if kind is Type.Q8_0:
        return _bytes(blocks.to(torch.int8))
    low = (blocks & 15).to(torch.uint8).view(len(codes), -1, 2, BLOCK // 2)
    halves = low[:, :, 0] | low[:, :, 1] << 4
    if kind in (Type.Q4_0, Type.Q4_1):
        return halves
    high = np.packbits((blocks >> 4).to(torch.uint8).numpy(), axis=-1, bitorder="little")
    return torch.cat([torch.from_numpy(high), halves], dim=-1)
