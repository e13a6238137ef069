"""Models for llama.cpp: a GGUF file with a type per tensor, and where there is a correction, a LoRA with a rank each.

    model.gguf   the dense model's file with codes of ours in the places of the matrices that were compressed
    lora.gguf    of W ≈ Q + A B the A and B, which llama.cpp adds as it does any adapter's

llama.cpp has no layer of a pair of factors, so that these are refused.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFType, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of
from svdexp.export.donor import Donor, Place, places, require_same
from svdexp.export.ggml_types import Blocks, pair, whole
from svdexp.models.matrices import matrices_in
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.portable.svdexp_residual import ResidualLinear
from svdexp.models.portable.svdexp_scaled import ScaledLinear
from svdexp.runtime.errors import UserError

MODEL, LORA = "model.gguf", "lora.gguf"
WHOLE = (QuantisedLinear.kind, ScaledLinear.kind)
OTHERS = ("quantize.", "split.", "GGUF.")  # what a file says of how it was made
REWRITTEN = (Keys.General.ARCHITECTURE, Keys.General.ALIGNMENT, Keys.General.FILE_TYPE)


def refuse_pairs(layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for the first layer of config.json's table that llama.cpp cannot have."""
    for name, entry in layers.items():
        holds = entry["storage"] == ResidualLinear.kind or (entry["storage"] in WHOLE and entry["rank"] is None)
        if not holds:
            raise UserError(
                f"format=gguf: llama.cpp has no layer of a pair of factors, as {name} is: use format=dense, whose "
                "folder llama.cpp's converter reads, or compress with storage=residual, whose factors it adds as a LoRA"
            )


def write_gguf(model: PreTrainedModel, donor: Donor, folder: Path) -> str:
    """Write the files of a `model` from `checkpoint.load` into `folder`.

    Returns:
        What became of the numbers, for people.

    Raises:
        UserError: the donor is another model, or has no place for a matrix.
    """
    layers = model.config.svdexp["layers"]
    refuse_pairs(layers)
    require_same(donor, model, architecture_of(model), layers)
    replaced = {matrix.name: matrix for matrix in matrices_in(donor.model) if matrix.name in layers}
    placed = places(donor, replaced.values())
    base: dict[str, Blocks] = {}
    adapter: dict[str, tuple[Blocks, Blocks]] = {}
    for name, place in placed.items():
        layer = replaced[name].layer(model)
        codes = layer.codes if isinstance(layer, ResidualLinear) else layer
        assert isinstance(codes, QuantisedLinear)
        base[place.tensor] = whole(codes).ordered(place.rows)
        if isinstance(layer, ResidualLinear):
            adapter[place.tensor] = lora(layer, place)
    folder.mkdir(parents=True, exist_ok=True)
    write_base(donor, base, folder / MODEL)
    if adapter:
        write_lora(donor, adapter, folder / LORA)
    return said(base, adapter)


def lora(layer: ResidualLinear, place: Place) -> tuple[Blocks, Blocks]:
    """A and B of a correction, A's rows in the tensor's order."""
    A, B = pair(layer.factors)
    return A.ordered(place.rows), B


def write_base(donor: Donor, replaced: Mapping[str, Blocks], path: Path) -> None:
    """The donor's file with some tensors replaced."""
    writer = GGUFWriter(path, donor.architecture)
    for key, field in donor.reader.fields.items():
        if key not in REWRITTEN and not key.startswith(OTHERS):
            kind = field.types[0]
            inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    writer.add_file_type(LlamaFileType.GUESSED)  # a type per tensor
    for tensor in donor.reader.tensors:
        if (blocks := replaced.get(tensor.name)) is not None:
            _add(writer, tensor.name, blocks)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def write_lora(donor: Donor, factors: Mapping[str, tuple[Blocks, Blocks]], path: Path) -> None:
    """A and B of the tensors by whose names they are called."""
    writer = GGUFWriter(path, donor.architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)  # llama.cpp then multiplies by 1, whatever the rank
    for name, (A, B) in factors.items():
        _add(writer, f"{name}.lora_a", B)
        _add(writer, f"{name}.lora_b", A)
    _finish(writer)


def said(base: Mapping[str, Blocks], adapter: Mapping[str, tuple[Blocks, Blocks]]) -> str:
    """How many matrices are of which type, and what that keeps of the numbers that were measured."""
    counts = Counter((blocks.type.name, str(blocks.fidelity)) for blocks in base.values())
    lines = [f"- {count} matrices in {kind}: {kept}" for (kind, kept), count in counts.most_common()]
    kinds = Counter("/".join(dict.fromkeys(side.type.name for side in sides)) for sides in adapter.values())
    lines += [f"- {count} corrections in {kind}: all bits" for kind, count in kinds.most_common()]
    return "\n".join(["What the files hold of the numbers that were measured:", "", *lines])


def _add(writer: GGUFWriter, name: str, blocks: Blocks) -> None:
    writer.add_tensor(name, blocks.data.contiguous().numpy(), raw_dtype=blocks.type)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
