"""The dense model's own GGUF file, of which an export for llama.cpp takes everything that was not compressed.

llama.cpp's converter knows, architecture by architecture, how tensors are called, which rows change places, and what a
tokenizer is. Nothing of that is repeated here: the file has it. Which tensor holds a matrix, and in which order of
rows, is seen from the numbers, for transformers reads the file, too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFReader, Keys, ReaderTensor, dequantize
from transformers import PreTrainedModel
from transformers.integrations.gguf import dequant
from transformers.integrations.gguf.utils import is_gguf_arch_supported

from svdexp.checkpoints.loading import load_model, locate
from svdexp.models.matrices import Matrix
from svdexp.runtime.errors import UserError, require
from svdexp.schema import ModelConfig

EMBEDDING = "token_embd.weight"
CLOSE = 0.01  # of a tensor's norm: what formats of 8 and 16 bits round away, and no other model comes near


@dataclass(frozen=True)
class Place:
    """Where llama.cpp has a matrix.

    Attributes:
        tensor: its name.
        rows: (m,), row i of the tensor is row rows[i] of the matrix.
    """

    tensor: str
    rows: torch.Tensor


@dataclass(frozen=True)
class Donor:
    """The file, what it holds, and the model in it in float32."""

    file: Path
    reader: GGUFReader
    model: PreTrainedModel

    @property
    def architecture(self) -> str:
        """In llama.cpp's words."""
        return str(self.reader.fields[Keys.General.ARCHITECTURE].contents())


def read_donor(path: str) -> Donor:
    """The donor that `gguf=path` names.

    Raises:
        UserError: it is no GGUF file, or holds no model that transformers reads.
    """
    file = donor_file(path)
    model = load_model(ModelConfig("the dense model", str(file)), torch.float32, torch.device("cpu"))
    return Donor(file, GGUFReader(file), model)


def donor_file(path: str) -> Path:
    """The file itself.

    Raises:
        UserError: there is none.
    """
    require(path.endswith(".gguf"), f"gguf={path} is no GGUF file, whose names end in .gguf")
    try:
        source = locate(ModelConfig("the dense model", path))
    except UserError as error:
        raise UserError(f"gguf={path} is not a file") from error
    return Path(source.location) / str(source.gguf_file)


def require_same(donor: Donor, model: PreTrainedModel, architecture: type, replaced: Iterable[str]) -> None:
    """Raise UserError unless what is not `replaced` in `model` is what the donor has."""
    made = type(donor.model)
    require(made is architecture, f"gguf={donor.file} holds a {made.__name__}, and the run a {architecture.__name__}")
    inside = tuple(f"{name}." for name in replaced)
    dense = donor.model.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith(inside):
            continue
        other = dense.get(name)
        if other is None or other.shape != tensor.shape or not _close(other, tensor):
            raise UserError(
                f"gguf={donor.file} is not the dense model of this run, or rounded too far: {name} differs; "
                "llama.cpp's convert_hf_to_gguf.py --outtype bf16 makes a file of the model that was compressed"
            )


def places(donor: Donor, matrices: Iterable[Matrix]) -> dict[str, Place]:
    """Where each of the dense `matrices` is, by their names.

    Raises:
        UserError: no tensor holds one, or several do.
    """
    asked = list(matrices)
    shapes = {(matrix.m, matrix.n) for matrix in asked}
    found: dict[bytes, list[tuple[str, torch.Tensor]]] = {}
    for tensor in donor.reader.tensors:
        if tuple(int(size) for size in reversed(tensor.shape)) in shapes:
            prints, order = fingerprints(numbers_of(tensor, donor.architecture)).sort(stable=True)
            found.setdefault(prints.numpy().tobytes(), []).append((tensor.name, order))
    placed = {}
    for matrix in asked:
        prints, order = fingerprints(matrix.weight(donor.model).float()).sort(stable=True)
        holders = found.get(prints.numpy().tobytes(), [])
        if len(holders) != 1 or holders[0][0] == EMBEDDING:
            number = "no tensor" if not holders else "no tensor of its own"
            raise UserError(
                f"format=gguf: {number} of {donor.file.name} holds {matrix.name} row by row, "
                "so it cannot be replaced there"
            )
        name, theirs = holders[0]
        rows = torch.empty_like(order)
        rows[theirs] = order
        placed[matrix.name] = Place(name, rows)
    return placed


def numbers_of(tensor: ReaderTensor, architecture: str) -> torch.Tensor:
    """A tensor of the file in float32 to the last bit as transformers reads it, which goes two ways."""
    if is_gguf_arch_supported(architecture) and tensor.tensor_type in dequant.GGML_BLOCK:
        data = torch.from_numpy(tensor.data.copy())
        return dequant.dequantize(data.flatten(), int(tensor.tensor_type)).view(len(data), -1)
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def fingerprints(W: torch.Tensor) -> torch.Tensor:
    """A number for each row of W, float32 (m, n) → int64 (m,), that differs where any bit of two rows does."""
    draws = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (W.shape[1],), generator=draws) | 1
    return (W.contiguous().view(torch.int32) * odd).sum(1)


def _close(dense: torch.Tensor, ours: torch.Tensor) -> bool:
    difference = (dense.float() - ours.float()).norm()
    return bool(difference <= CLOSE * dense.float().norm())
