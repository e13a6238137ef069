"""GPTQ by GPTQModel, the maintained library; docs/methods.md says how to install it."""

from importlib.util import find_spec

import torch
from torch import nn

from svdexp.models.portable.svdexp_bits import middle, widened
from svdexp.runtime.errors import require
from svdexp.storage.rounding import DAMPING, Grid, Rounded


def require_gptqmodel() -> None:
    """Raise UserError if the library is not installed."""
    require(
        find_spec("gptqmodel") is not None,
        "storage.solver=gptqmodel needs the package gptqmodel; docs/methods.md says how to install it, and "
        "storage.solver=own needs none",
    )


def by_gptqmodel(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Rounded:
    """What rounding.gptq does, in the library's float32.

    Args:
        W: (rows, columns).
        C: second moment of the inputs, (columns, columns).
        grid: codes and groups. Where columns are no multiple of the groups, the library's errors are larger.
    """
    from gptqmodel.quantization import GPTQ, QuantizeConfig  # takes seconds, so only where it is used

    columns, grouped = W.shape[1], grid.group_size is not None
    config = QuantizeConfig(
        bits=grid.bits,
        group_size=min(grid.group_size or -1, columns),
        sym=True,
        desc_act=not grouped,
        act_group_aware=grouped,
        damp_percent=DAMPING,
    )
    linear = nn.Linear(columns, len(W), bias=False, device="meta")
    linear.weight = nn.Parameter(W.float().contiguous(), requires_grad=False)
    task = GPTQ(linear, config)
    task.quantizer.configure(perchannel=True)
    # It wants inputs: any with this second moment will do.
    values, vectors = torch.linalg.eigh(C.double())
    inputs = (vectors * (columns * values.clamp_min(0)).sqrt()).mT.float()[None]
    task.add_batch(inputs, linear(inputs))
    found, scale = task.quantize()[:2]
    steps = widened(scale.double(), columns, grid.group_size)
    codes = (found.double() / steps).round().int() + middle(grid.bits)
    return Rounded(codes, scale.half())
