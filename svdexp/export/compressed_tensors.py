"""Whole matrices in codes in compressed-tensors' pack-quantized layout, which transformers reads.

Of a matrix (rows, columns) with codes of b bits, in groups along a row:

    weight_packed      (rows, columns · b / 32, rounded up) int32: each row one stream of bits, lowest first
    weight_scale       (rows, groups) float16
    weight_zero_point  (rows · b / 32, rounded up, groups) int32: each column of codes of zero one stream; only where
                       groups have their own, else the code of zero is in the middle
    weight_shape       (2,) int64

These are our codes and our scales: nothing is rounded again. config.json has the matrices of one width and one size of
groups as a config group.
"""

from collections.abc import Mapping
from math import ceil, gcd
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of, empty_model, unlabel
from svdexp.export.autogptq import WORD, holding
from svdexp.models.families.linear import is_transposed
from svdexp.models.matrices import matrices_in
from svdexp.models.portable.svdexp_bits import pack, unpack, widened
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.portable.svdexp_residual import ResidualLinear
from svdexp.models.portable.svdexp_scaled import ScaledLinear
from svdexp.runtime.errors import UserError, require

SMALLEST = 32  # codes in a group, where we cut groups smaller: what vLLM's kernels take
WITH_ZEROS = """The codes have zero points: transformers loads those of 4 or 8 bits with `compressed-tensors==0.17.1`,
and with releases 0.18.0 to 0.20.1 none."""
INSTEAD = {
    ResidualLinear.kind: "format=gptq or format=peft, which have its correction as an adapter",
    ScaledLinear.kind: "format=gguf, or storage=gptq4, whose columns are not scaled",
    QuantisedLinear.kind: "format=gptq, or method=quantise, which does not factorise",
}


class Width(NamedTuple):
    """What the matrices of a config group have in common; a `group_size` of None makes each row one group."""

    bits: int
    group_size: int | None
    zero_points: bool


def require_codes(layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for the first layer of config.json's table that is no whole matrix in codes."""
    for name, entry in layers.items():
        kind, rank = entry["storage"], entry["rank"]
        if kind != QuantisedLinear.kind or rank is not None:
            what = kind if rank is None else f"{kind} of rank {rank}"
            raise UserError(
                f"format=compressed_tensors has whole matrices in codes alone, but {name} is kept as {what}: "
                f"use {INSTEAD.get(kind, 'format=vllm or format=dense')}"
            )


@torch.no_grad()
def convert(model: PreTrainedModel) -> str:
    """Put a model from `checkpoint.load` into the layout, in place; then it can be saved, but not run.

    Returns:
        What the card has to say of it beside what it says of all.

    Raises:
        UserError: a layer is no whole matrix in codes, or of a module or in groups that the layout does not know.
    """
    table = model.config.svdexp["layers"]
    require(bool(table), "format=compressed_tensors is for codes, and all layers are dense here: use format=dense")
    require_codes(table)
    skeleton = empty_model(architecture_of(model), model.config)
    found: dict[Width, list[str]] = {}
    for matrix in matrices_in(skeleton):
        if matrix.name in table:
            plain = not matrix.rivals and not is_transposed(matrix.layer(skeleton))
            require(
                plain,
                f"format=compressed_tensors has layers of nn.Linear alone, but {matrix.name} is none: use format=dense",
            )
            layer = matrix.layer(model)
            assert isinstance(layer, QuantisedLinear)
            width = width_of(matrix.name, layer)
            found.setdefault(width, []).append(matrix.name)
            matrix.put(model, packed(layer, width))
    linear = [name for name, part in skeleton.named_modules() if isinstance(part, nn.Linear)]
    unlabel(model)
    model.config.quantization_config = described(found, [name for name in linear if name not in table])
    return WITH_ZEROS if any(width.zero_points for width in found) else ""


def width_of(name: str, layer: QuantisedLinear) -> Width:
    """The config group of a layer.

    The layout has groups of one size. Where the last one of a row is shorter, all are cut to the largest size of which
    both are multiples, and scales are repeated.

    Raises:
        UserError: that size is too small.
    """
    size, columns = layer.group_size, layer.shapes["out"][1]
    if size is not None and columns % size:
        even = gcd(size, columns)
        require(
            even >= SMALLEST or size >= columns,
            f"format=compressed_tensors has groups of one size, but rows of {name} have {columns} columns, no multiple "
            f"of {size}: compress with a storage.group_size that divides them, or none",
        )
        size = even if size < columns else None
    return Width(layer.code_bits, size, layer.zero_points)


def packed(layer: QuantisedLinear, width: Width) -> nn.Module:
    """The tensors of one layer under the names of the layout."""
    (rows, columns), bits = layer.shapes["out"], layer.code_bits
    codes = unpack(layer.get_buffer("out_codes"), rows * columns, bits).view(rows, columns)

    def regrouped(of_groups: torch.Tensor) -> torch.Tensor:
        """What our groups have, (rows, groups), for the groups of the layout."""
        if width.group_size == layer.group_size or width.group_size is None:
            return of_groups
        return widened(of_groups, columns, layer.group_size)[:, :: width.group_size]

    tensors = {
        "weight_packed": words(codes, bits),
        "weight_scale": regrouped(layer.get_buffer("out_scale").view(torch.float16)),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if layer.zero_points:
        tensors["weight_zero_point"] = words(regrouped(layer.zero("out")).T, bits).T
    module = holding(tensors)
    if layer.bias is not None:
        module.bias = layer.bias
    return module


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (rows, count) below 2^bits as int32 (rows, ceil(count · bits / 32)), each row a stream of its own."""
    rows, count = codes.shape  # WORD codes, of any width, fill whole words
    whole = nn.functional.pad(codes, (0, -count % WORD))
    return pack(whole.flatten(), bits).view(torch.int32).view(rows, -1)[:, : ceil(count * bits / WORD)]


def described(groups: Mapping[Width, list[str]], ignored: list[str]) -> dict[str, Any]:
    """What config.json says of the layout: matrices of one group alone by their class, else each by its name."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {
            f"group_{index}": {
                "targets": ["Linear"] if len(groups) == 1 else names,
                "format": "pack-quantized",
                "weights": {
                    "type": "int",
                    "num_bits": width.bits,
                    "symmetric": not width.zero_points,
                    "strategy": "channel" if width.group_size is None else "group",
                    "group_size": width.group_size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, (width, names) in enumerate(groups.items())
        },
    }
