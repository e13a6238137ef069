"""Quantised models in AutoGPTQ's layout, which transformers reads together with GPTQModel.

Of a matrix (rows, columns) with codes of b bits, in groups along a row:

    qweight  (columns · b / 32, rows) int32: a row's codes one after the other, lowest bits first
    qzeros   (groups, rows · b / 32) int32: the code of zero less one
    scales   (groups, rows) float16
    g_idx    (columns,) int32: the group of each column

A row of ours is the same stream of bits where columns are multiples of 32, so nothing is rounded again.
"""

from collections.abc import Collection, Mapping
from math import gcd, lcm

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of, empty_model, unlabel
from svdexp.models.matrices import Matrix, matrices_in
from svdexp.models.portable.svdexp_bits import groups, middle, pack
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.structure import named_blocks
from svdexp.runtime.errors import UserError, require

WIDTHS = (3, 4, 8)  # of the layout's codes
WORD = 32  # bits


def convert(model: PreTrainedModel) -> None:
    """Put a quantised model from `checkpoint.load` into the layout, in place; then it can be saved, but not run.

    Raises:
        UserError: a matrix of the blocks is not quantised, not like the others, or of a shape that does not fit.
    """
    layers = quantised_layers(model)
    bits, group_size = common_form(layers.values())
    for matrix, layer in layers.items():
        matrix.put(model, packed(matrix.name, layer))
    ranks = {matrix.name: layer.shapes["in"][0] for matrix, layer in layers.items() if "in" in layer.shapes}
    if ranks:
        model.config.svdexp["layers"] = {
            name: {"storage": LowRankLinear.kind, "rank": rank} for name, rank in ranks.items()
        }
    else:
        unlabel(model)
    model.config.quantization_config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": -1 if group_size is None else group_size,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }


def quantised_layers(model: PreTrainedModel) -> dict[Matrix, QuantisedLinear]:
    """The layers of all matrices of the blocks; the layout's readers take every linear layer in them for quantised.

    Raises:
        UserError: one is not, or one outside the blocks is.
    """
    found: dict[Matrix, QuantisedLinear] = {}
    for group, block in named_blocks(empty_model(architecture_of(model), model.config)).items():
        for matrix in matrices_in(block, group):
            layer = matrix.layer(model)
            if type(layer) is not QuantisedLinear:  # a ScaledLinear is one, and holds what the layout does not
                raise UserError(
                    f"format=gptq needs all matrices of the blocks in codes alone, but not so is {matrix.name}: "
                    "compress with storage=gptq4 or storage=rtn_int4, or use format=dense"
                )
            # stacks, as the layout's readers have experts, hold numbers alone
            whole_expert = matrix.rivals and "in" not in layer.shapes
            require(
                not whole_expert, f"format=gptq has no experts in stacks, but {matrix.name} is one's: use format=dense"
            )
            found[matrix] = layer
    names = {matrix.name for matrix in found}
    for name in model.config.svdexp["layers"]:
        require(name in names, f"format=gptq has quantised matrices in the blocks only, but there is {name}")
    return found


def common_form(layers: Collection[QuantisedLinear]) -> tuple[int, int | None]:
    """Bits of a code and group size of all `layers`.

    Raises:
        UserError: they differ, or the layout has no such codes.
    """
    forms = {(layer.code_bits, layer.group_size) for layer in layers}
    # first, because several forms may have zero points by a word in storage.forms and not by a switch
    require(
        len(forms) == 1,
        f"format=gptq has codes and groups of one size, but here are {len(forms)}: use format=compressed_tensors, "
        "which has several, or compress with one, as by method=quantise storage=gptq4",
    )
    require(
        not any(layer.zero_points for layer in layers),
        "format=gptq has no zero points here: compress with storage.zero_points=false",
    )
    ((bits, group_size),) = forms
    widths = ", ".join(map(str, WIDTHS))
    require(bits in WIDTHS, f"format=gptq has codes of {widths} bits, not of {bits}: compress with storage=gptq4")
    return bits, group_size


def packed(name: str, layer: QuantisedLinear) -> nn.Module:
    """The tensors of one layer under the names of the layout; of factors, those of LowRankLinear's two children."""
    sides = {side: _packed(name, layer, side) for side in layer.shapes}
    last = sides["out"]
    if layer.bias is not None:
        last.bias = layer.bias
    if "in" not in sides:
        return last
    pair = nn.Module()
    pair.rank_in, pair.rank_out = sides["in"], last
    return pair


def remedy(layer: QuantisedLinear, unit: int) -> str:
    """What to do about a layer that does not fit, whose rank would fit as a multiple of `unit`."""
    m, n = layer.shapes["out"][0], layer.shapes.get("in", layer.shapes["out"])[1]
    if n % unit and not (n % WORD or m * layer.code_bits % WORD):
        return f"compress with storage.group_size={WORD}, of which the layer's inputs, {n}, are a multiple"
    if n % unit or m * layer.code_bits % WORD or min(m, n) < unit:
        return f"no rank makes the layer's own shape {(m, n)} fit, so leave it to format=hf"
    return f"compress with method.allocation.rank_align={unit}"


def _packed(name: str, layer: QuantisedLinear, side: str) -> nn.Module:
    (rows, columns), bits, size = layer.shapes[side], layer.code_bits, layer.group_size
    unit = lcm(WORD, size or 1)  # of columns; rows fill words with fewer
    if columns % unit or rows * bits % WORD:
        raise UserError(
            f"format=gptq: a matrix of {name} has shape {(rows, columns)}, but the layout wants columns in multiples "
            f"of {unit} and rows in multiples of {WORD // gcd(WORD, bits)}; {remedy(layer, unit)}"
        )
    count = groups(columns, size)
    zeros = pack(torch.full((count * rows,), middle(bits) - 1), bits)
    tensors = {
        "qweight": layer.get_buffer(f"{side}_codes").view(torch.int32).view(rows, -1).T,
        "qzeros": zeros.view(torch.int32).view(count, -1),
        "scales": layer.get_buffer(f"{side}_scale").view(torch.float16).T,
        "g_idx": torch.arange(columns, dtype=torch.int32) // (size or columns),
    }
    return holding(tensors)


def holding(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module of buffers alone."""
    module = nn.Module()
    for key, tensor in tensors.items():
        module.register_buffer(key, tensor.contiguous())
    return module
