"""Integer codes packed into bytes, and the groups of codes that share a scale."""

from math import ceil, lcm

import torch
from torch import nn

# Bits of a code: of these widths, at most eight codes fill whole bytes.
CODE_BITS = (2, 3, 4, 5, 6, 8)


def middle(bits: int) -> int:
    """The code of zero."""
    return 1 << bits - 1


def groups(columns: int, group_size: int | None) -> int:
    """How many groups a row of `columns` codes has."""
    return 1 if group_size is None else ceil(columns / group_size)


def widened(scale: torch.Tensor, columns: int, group_size: int | None) -> torch.Tensor:
    """The scale of every code in a row, (rows, columns), or what broadcasts to it, from those of groups."""
    # A group is no longer than its row, whatever a file says.
    return scale if group_size is None else scale.repeat_interleave(min(group_size, columns), dim=1)[:, :columns]


def unit(bits: int) -> tuple[int, int]:
    """How many codes of `bits` bits fill how many bytes: 8 of 3 bits fill 3, 2 of 4 one, 8 of 5 five, 4 of 6 three."""
    return lcm(bits, 8) // bits, lcm(bits, 8) // 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed codes."""
    codes, size = unit(bits)
    return ceil(count / codes) * size


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (count,) below 2^bits in (packed_bytes,) of uint8, lowest bits first; zeros fill the last unit."""
    each, size = unit(bits)
    rows = nn.functional.pad(codes.to(_word(size)), (0, -len(codes) % each)).view(-1, each)
    words = (rows << bits * torch.arange(each, device=codes.device)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(size, device=codes.device) & 255).flatten().to(torch.uint8)


def unpack(packed: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """The first `count` codes, (count,), of what `pack` made: uint8, or wider where units take several bytes."""
    each, size = unit(bits)
    words = packed.view(-1, size)
    if size > 1:
        places = 8 * torch.arange(size, dtype=_word(size), device=packed.device)
        words = (words.to(_word(size)) << places).sum(1, keepdim=True, dtype=_word(size))
    places = bits * torch.arange(each, dtype=words.dtype, device=packed.device)
    return (words >> places & (1 << bits) - 1).flatten()[:count]


def _word(size: int) -> torch.dtype:
    """The integers that hold a unit of `size` bytes."""
    return torch.int32 if size < 4 else torch.int64
