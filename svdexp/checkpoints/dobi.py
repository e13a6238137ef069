"""Checkpoints that Dobi-SVD (arXiv 2502.02723) released with remapping, read into plain factors.

Beside config.json and the tokenizer a folder holds two files written by torch.save:

    pytorch_model.bin    a state dict of the tensors outside attention and MLP
    remapping_weight.pt  {name of a linear layer: entry}; W of shape (m, n) ≈ A B at rank k, s = min(m, n)
        us_quan, vt_quan      (k, s) uint8: codes of A[:s].T and of B[:, :s]
        us_absmax, vt_absmax  (k,) float16: what the decoded columns of A[:s] and rows of B[:, :s] are multiplied by
        tuple_info            float16: ("us", A[s:]) where m > n, ("vt", B[:, s:]) where m < n, else None

The singular values are inside A or B already. As in the reference everything is float16, and a layer whose factors are
no smaller than its matrix becomes dense again.
"""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.factors import Factors
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.finite import all_finite

REMAPPED = "remapping_weight.pt"
OTHERS = "pytorch_model.bin"
DTYPE = torch.float16

State = dict[str, torch.Tensor]


def most_tensors(folder: Path) -> int:
    """More tensors than the two files can hold, told by their sizes: each has at least 64 bytes of its own."""
    return sum((folder / name).stat().st_size // 64 for name in (REMAPPED, OTHERS) if (folder / name).is_file())


def read(folder: Path, skeleton: PreTrainedModel) -> tuple[State, dict[str, int]]:
    """Everything the model needs, in float16, and the ranks of the layers that are a LowRankLinear in it.

    Args:
        folder: holds both files.
        skeleton: the dense model without its weights; it says which tensors there must be.

    Raises:
        UserError: a file is missing, damaged, holds anything but tensors, or does not fit the skeleton.
    """
    remapped, others = _load(folder / REMAPPED), _load(folder / OTHERS)
    linears = {name: _linear(folder / REMAPPED, name, skeleton) for name in remapped}
    state = _others(folder / OTHERS, others, skeleton, {f"{name}.weight" for name in linears})
    _require_complete(folder, skeleton, {*state, *(f"{name}.weight" for name in linears)})
    ranks = {}
    for name, linear in linears.items():
        m, n = linear.weight.shape
        # Popped, so that codes and numbers of all layers are not in memory together.
        factors = decode(remapped.pop(name), m, n, f"{folder / REMAPPED}: {name}")
        if factors.rank * (m + n) < m * n:
            ranks[name] = factors.rank
            state |= {f"{name}.rank_in.weight": factors.B, f"{name}.rank_out.weight": factors.A}
            if linear.bias is not None:
                state[f"{name}.rank_out.bias"] = state.pop(f"{name}.bias")
        else:
            state[f"{name}.weight"] = (factors.A.float() @ factors.B.float()).to(DTYPE)
    return state, ranks


def decode(entry: Any, m: int, n: int, where: str) -> Factors:
    """A (m, k) and B (k, n), float16, of one layer's entry; `where` names it in errors.

    Raises:
        UserError: a part is missing, of another type or shape, or not finite.
    """
    entry, side = entry if isinstance(entry, dict) else {}, min(m, n)
    codes = entry.get("us_quan")
    rank = len(codes) if isinstance(codes, torch.Tensor) and codes.ndim else 0
    require(1 <= rank <= side, f"{where}: us_quan is not a tensor of 1 to {side} rows, the ranks of shape {(m, n)}")

    def part(matrix: str) -> torch.Tensor:
        """The decoded square part, (k, s) float32."""
        codes = _checked(entry.get(f"{matrix}_quan"), torch.uint8, (rank, side), f"{where}: {matrix}_quan")
        scale = _checked(entry.get(f"{matrix}_absmax"), DTYPE, (rank,), f"{where}: {matrix}_absmax")
        return dynamic_map()[codes.int()] * scale.float()[:, None]

    A, B, rest = part("us").T, part("vt"), entry.get("tuple_info")
    if m > n:
        A = torch.cat([A, _rest(rest, "us", (m - n, rank), where)])
    elif m < n:
        B = torch.cat([B, _rest(rest, "vt", (rank, n - m), where)], dim=1)
    else:
        require(rest is None, f"{where}: tuple_info is not None, though the matrix is square")
    return Factors(A.to(DTYPE).contiguous(), B.to(DTYPE))


@cache
def dynamic_map() -> torch.Tensor:
    """What the 256 codes stand for, (256,) float32, ascending from −0.99296875 to 1.

    bitsandbytes' signed dynamic map (create_dynamic_map), after "8-bit Approximations for Parallelism in Deep
    Learning" (arXiv 1511.04561): for i = 0 … 6 the midpoints of 2^i equal intervals of [0.1, 1], times 10^(i − 6),
    with both signs; 0 and 1.
    """
    midpoints = [0.1 + 0.9 * (torch.arange(2**i, dtype=torch.float64) + 0.5) / 2**i for i in range(7)]
    positive = torch.cat([10.0 ** (i - 6) * values for i, values in enumerate(midpoints)])
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values.float()


def _load(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # many types, and torch's own words recommend to unpickle whatever is there
        raise UserError(f"{path} is damaged, or holds more than tensors, which svdexp does not unpickle") from error
    require(isinstance(found, dict) and all(type(name) is str for name in found), f"{path} is not a table of names")
    return dict(found)


def _linear(path: Path, name: str, skeleton: PreTrainedModel) -> nn.Linear:
    found = dict(skeleton.named_modules()).get(name)
    if not isinstance(found, nn.Linear) or found is skeleton.get_output_embeddings():  # type: ignore[no-untyped-call]
        raise UserError(f"{path}: {name} is not a linear layer in the blocks of {type(skeleton).__name__}")
    return found


def _others(path: Path, found: dict[str, Any], skeleton: PreTrainedModel, remapped: Collection[str]) -> State:
    """The file's tensors, tied ones under their first name; weights that are `remapped` are left out."""
    slots = skeleton.state_dict(keep_vars=True)
    first = {id(slot): name for name, slot in reversed(slots.items())}
    state: State = {}
    for name, tensor in found.items():
        require(name in slots, f"{path}: {name} is not a tensor of {type(skeleton).__name__}")
        if name in remapped:
            continue
        shape, key = tuple(slots[name].shape), first[id(slots[name])]
        fits = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape == shape
        require(fits, f"{path}: {name} must be numbers of shape {shape}, not {_described(tensor)}")
        same = key not in state or torch.equal(state[key], tensor.to(DTYPE))
        require(same, f"{path}: {name} differs from {key}, to which config.json ties it")
        state[key] = tensor.to(DTYPE)
    return state


def _require_complete(folder: Path, skeleton: PreTrainedModel, found: Collection[str]) -> None:
    slots = skeleton.state_dict(keep_vars=True)
    filled = {id(slots[name]) for name in found}
    head: Any = skeleton.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = dict(skeleton.named_modules())
    for name, slot in slots.items():
        module, _, kind = name.rpartition(".")
        layer = modules[module]
        remapped = kind == "weight" and isinstance(layer, nn.Linear) and layer is not head
        lacking = f"{folder / REMAPPED} lacks {module}" if remapped else f"{folder / OTHERS} lacks {name}"
        require(id(slot) in filled, f"{lacking}, which {type(skeleton).__name__} of config.json has")


def _rest(info: Any, label: str, shape: tuple[int, int], where: str) -> torch.Tensor:
    pair = info if isinstance(info, tuple) and len(info) == 2 else (None, None)
    require(pair[0] == label, f"{where}: tuple_info is not a pair of {label!r} and a tensor")
    return _checked(pair[1], DTYPE, shape, f"{where}: tuple_info").float()


def _checked(tensor: Any, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> torch.Tensor:
    fits = isinstance(tensor, torch.Tensor) and tensor.dtype == dtype and tensor.shape == shape
    require(fits, f"{what} must be {dtype} of shape {shape}, not {_described(tensor)}")
    assert isinstance(tensor, torch.Tensor)
    require(all_finite(tensor), f"{what} is not finite")
    return tensor


def _described(found: Any) -> str:
    return f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"{found!r:.40}"
