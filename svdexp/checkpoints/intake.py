"""What is looked at in a checkpoint before transformers reads it, for it may come from anywhere."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from svdexp.models.hooks import parameter_hook
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.reading import read_object, repeated_keys

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Of a sound model: a tensor in a file may be split into several in memory, and each is registered more than once.
SPLIT, SPARE = 8, 1000


def refuse_pickle(path: Path) -> None:
    """Raise UserError if `path` is a file that only unpickling could read."""
    if path.suffix in PICKLES and path.is_file():
        raise UserError(
            f"{path} is a pickle, and reading it would run whatever code its author put in, so svdexp does not; "
            "SVD-LLM saves its models and whitening matrices so: compress the dense model here with method=svd_llm"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint `folder`, whose headers are whole.

    Raises:
        UserError: there are none, one is damaged, or something points out of the folder.
    """
    weights = [folder / name for name in _names(folder)]
    if not weights:
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        raise UserError(f"checkpoint {folder} has no weights: neither {WEIGHTS} nor {INDEX}")
    # transformers would follow these to other weights than the folder's.
    config = read_object(folder / "config.json")
    require("transformers_weights" not in config, f"checkpoint {folder}: config.json may not set transformers_weights")
    require(not (folder / "adapter_config.json").exists(), f"checkpoint {folder} holds an adapter; merge it first")
    for path in weights:
        require(path.is_file(), f"checkpoint {folder}: {INDEX} names {path.name}, which is not there")
        with opened(path, f"checkpoint {folder}: {path.name}"):
            pass
    return weights


def safetensors_read(folder: Path) -> list[Path]:
    """Those safetensors files that transformers would read the model in `folder` from: others may lie beside them, as
    Mistral's consolidated.safetensors does, which holds all of it again.

    Raises:
        UserError: their index cannot be read.
    """
    return [path for name in _names(folder) if (path := folder / name).is_file()]


def weights_read(folder: Path) -> list[Path]:
    """The same, and those in torch's own format where there are none.

    Raises:
        UserError: as `safetensors_read`.
    """
    return safetensors_read(folder) or sorted(folder.glob("*.bin"))


def has_safetensors(folder: Path) -> bool:
    """Whether transformers would read the model in `folder` from safetensors files."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """A safetensors file whose header is whole, and no shorter than that says; `what` it is called in a sentence.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{what} is damaged or cut short: {error}") from error
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error}") from error


def require_shapes(folder: Path, found: Mapping[str, torch.Size], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError for a tensor of another shape than the model of config.json has; names are compared later.

    Before anything is allocated, because config.json may promise what no memory holds.
    """
    for name, shape in found.items():
        if name in expected and shape != expected[name].shape:
            shapes = f"{name} has shape {tuple(shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f"checkpoint {folder} does not match its config.json: {shapes}")


@contextmanager
def at_most(tensors: int, what: str) -> Iterator[None]:
    """Within this context no model may be made of far more parameters than there are `tensors` in the files of `what`.

    A config.json that promises a million layers is found out when the first hundreds are there.

    Raises:
        UserError: one is.
    """
    made, most = 0, SPLIT * tensors + SPARE

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        require(made <= most, f"{what}: config.json promises more than {most} tensors, but the files hold {tensors}")

    with parameter_hook(count):
        yield


def header_shapes(paths: Iterable[Path]) -> dict[str, torch.Size]:
    """The shapes of all tensors in safetensors files, by name.

    Raises:
        UserError: a file is damaged, or cannot be read; or two hold one tensor.
    """
    return {name: shape for name, (_, shape) in _headers(paths).items()}


def tensor_files(paths: Iterable[Path]) -> dict[str, Path]:
    """Which safetensors file holds which tensor, by their headers; an index may say something else.

    Raises:
        UserError: as `header_shapes`.
    """
    return {name: path for name, (path, _) in _headers(paths).items()}


def _headers(paths: Iterable[Path]) -> dict[str, tuple[Path, torch.Size]]:
    found: dict[str, tuple[Path, torch.Size]] = {}
    for path in paths:
        with opened(path, path.name) as file:
            for name in file.keys():  # noqa: SIM118
                if name in found:
                    raise UserError(f"{name} is in two files, {found[name][0]} and {path}")
                found[name] = path, torch.Size(file.get_slice(name).get_shape())
    return found


def _names(folder: Path) -> list[str]:
    """The names that transformers would read."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    table = read_object(folder / INDEX).get("weight_map")
    twice = repeated_keys((folder / INDEX).read_text())
    require(not twice, f"checkpoint {folder}: {INDEX} names {twice[:1]} twice")
    require(isinstance(table, dict) and bool(table), f"checkpoint {folder}: {INDEX} has no weight_map")
    assert isinstance(table, dict)
    for name in table.values():
        inside = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
        require(inside, f"checkpoint {folder}: {INDEX} names {name!r}, which is no safetensors file of this folder")
    return sorted(set(table.values()))
