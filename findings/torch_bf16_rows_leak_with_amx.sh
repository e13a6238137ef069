#!/usr/bin/env bash
# A bfloat16 product on a CPU with AMX mixes rows that have nothing to do with each other, at ranks that are no multiple of 32.
#
# Seen with torch 2.13.0 and 2.14.1 (oneDNN 3.12; Python 3.11, x86-64 with amx_bf16).
#
# Row i of torch.nn.functional.linear(x, W) is made of row i of x. With AMX and more than 16 rows, where the width of x is no
# multiple of 32, the kernel reads each row of x up to the next multiple of 32 and counts on zeros in its own copy of W to
# take the rest out again. Zero times infinity or NaN is NaN. So
#   - one row with an infinite number (a token that overflowed, a masked one of a batch) makes the row before it NaN, too:
#     another token, perhaps of another text;
#   - a slice such as the first r columns of a larger tensor has NaN where the columns beside it are not finite, which
#     nobody multiplied by: memory that was never written does. A contiguous copy of the same slice has none.
# Ranks of factors (335, 336, 167 here) are such widths far more often than the sizes of layers, which are multiples of 64. In
# float32 it does not happen, nor at 320, nor when oneDNN is told to do without AMX (ONEDNN_MAX_CPU_ISA), nor without an
# AMX unit; the maintainers of oneDNN know of it (issue 5717), and torch's later releases may bring another oneDNN.
#
# Output seen, with AMX:
#   torch 2.13.0, this CPU has amx_bf16: True
#   bfloat16 rank 320   not finite beside row 100: []    of a slice: 0 of 256 rows    of its copy: 0
#   bfloat16 rank 335   not finite beside row 100: [99]  of a slice: 240 of 256 rows  of its copy: 0
#   bfloat16 rank 336   not finite beside row 100: [99]  of a slice: 240 of 256 rows  of its copy: 0
#   float32  rank 335   not finite beside row 100: []    of a slice: 0 of 256 rows    of its copy: 0
#   without AMX:
#   bfloat16 rank 335   not finite beside row 100: []    of a slice: 0 of 256 rows    of its copy: 0
#
# Exits 0 while this is so, 1 when it changes. Where the CPU has no AMX it shows the last line alone. Removes all it made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat >"$work/rows.py" <<'PYTHON'
import sys

import torch
from torch.nn.functional import linear

TOKENS, WIDTH, OVERFLOWED = 256, 576, 100


def measured(dtype, rank):
    """Rows that are not finite beside the one that was given so, and how many of a slice and of its copy."""
    W = torch.randn(WIDTH, rank).to(dtype)
    x = torch.randn(TOKENS, rank).to(dtype)
    x[OVERFLOWED] = torch.inf
    beside = [row for row in broken(linear(x, W)) if row != OVERFLOWED]
    larger = torch.full((TOKENS, rank + 17), torch.nan, dtype=dtype)
    part = larger[:, :rank]
    part.copy_(torch.randn(TOKENS, rank))
    return beside, len(broken(linear(part, W))), len(broken(linear(part.contiguous(), W)))


def broken(y):
    """The rows that hold a number that is not finite."""
    return (~y.isfinite()).any(1).nonzero().flatten().tolist()


def show(dtype, rank):
    """Measure and print."""
    found = beside, slices, copies = measured(dtype, rank)
    what = f"{str(dtype).removeprefix('torch.'):8} rank {rank}   not finite beside row {OVERFLOWED}: {beside!s:5}"
    print(f"{what} of a slice: {slices} of {TOKENS} rows".ljust(80), f" of its copy: {copies}")
    return found


torch.manual_seed(0)
torch.set_num_threads(1)
clean, leaks = ([], 0, 0), ([OVERFLOWED - 1], 240, 0)
with_amx = sys.argv[1] == "with"
same = True
for dtype, rank in ((torch.bfloat16, 320), (torch.bfloat16, 335), (torch.bfloat16, 336), (torch.float32, 335)):
    if with_amx or (dtype, rank) == (torch.bfloat16, 335):
        expected = leaks if with_amx and dtype == torch.bfloat16 and rank % 32 else clean
        same = same and show(dtype, rank) == expected
sys.exit(not same)
PYTHON
amx=$("$work/venv/bin/python" -c 'import torch; print(torch.cpu.get_capabilities().get("amx_bf16", False))')
echo "torch $("$work/venv/bin/python" -c 'import torch; print(torch.__version__.split("+")[0])'), this CPU has amx_bf16: $amx"
if [ "$amx" = True ]; then
  "$work/venv/bin/python" "$work/rows.py" with || { echo "this has changed"; exit 1; }
fi
echo "without AMX:"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 "$work/venv/bin/python" "$work/rows.py" without || { echo "this has changed"; exit 1; }
