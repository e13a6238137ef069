"""Whether a checkpoint that svdexp saved is still all there; of its tensors only the places are looked at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

from svdexp.checkpoints.elastic import FOLDER
from svdexp.checkpoints.intake import INDEX, WEIGHTS, header_shapes, opened, weight_files
from svdexp.models.portable import modeling_svdexp
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.reading import read_object

TOKENIZER = "tokenizer_config.json"


def require_whole(folder: Path) -> None:
    """Raise UserError if a file of the checkpoint is missing, or one with tensors is shorter than its header says."""
    config = read_object(folder / "config.json")
    names = header_shapes(weight_files(folder)).keys()
    indexed = not (folder / WEIGHTS).is_file()
    if indexed and (gone := sorted(read_object(folder / INDEX)["weight_map"].keys() - names)):
        raise UserError(f"checkpoint {folder} lacks tensors that {INDEX} names, first {gone[0]}")
    for path in _others(folder, config):
        if not path.is_file():
            raise UserError(f"checkpoint {folder} lacks {path.relative_to(folder)}")
        if path.suffix == ".safetensors":
            with opened(path, str(path)):
                pass


def has_lower_ratios(folder: Path) -> bool:
    """Whether the checkpoint is one of save=elastic."""
    return _recipe(read_object(folder / "config.json")) is not None


def _others(folder: Path, config: dict[str, object]) -> Iterator[Path]:
    """What belongs to a checkpoint beside its config and its weights."""
    yield folder / TOKENIZER
    yield from _code(folder, config)
    recipe = _recipe(config)
    layers = recipe.get("layers") if isinstance(recipe, dict) else recipe
    require(isinstance(layers, list | None), f"{folder / 'config.json'}: svdexp.elastic is no recipe")
    for name in layers or ():
        yield folder / FOLDER / f"{name}.safetensors"


def _code(folder: Path, config: dict[str, object]) -> Iterator[Path]:
    """The files of code that transformers needs: ours, those of models with code of their own, and what they import.

    Each is read for its imports after it was asked for.
    """
    classes = config.get("auto_map")
    named = [str(name).partition(".")[0] for name in classes.values()] if isinstance(classes, dict) else []
    waiting = list(dict.fromkeys([modeling_svdexp.__name__.rpartition(".")[2], *named]))
    for name in waiting:  # which grows
        path = folder / f"{name}.py"
        yield path
        waiting += sorted(set(get_relative_imports(path)) - set(waiting))


def _recipe(config: dict[str, object]) -> Any:
    """What config.json says of lower ratios; None where the checkpoint has one size."""
    table = config.get("svdexp")
    return table.get("elastic") if isinstance(table, dict) else None
