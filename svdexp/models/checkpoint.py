"""Checkpoints of compressed models: what transformers writes, plus how to rebuild the replaced layers.

config.json carries `svdexp: {"version": 1, "layers": {module name: {"storage": kind, "rank": r}}}`, and what
svdexp/models/elastic.py adds. Loading makes a subclass of the architecture whose constructor replaces those
layers, so dtype, device and sharding stay transformers' business. Safetensors and JSON only; nothing is unpickled.
What Dobi-SVD's reference wrote (svdexp/models/dobi.py) can be loaded, too.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from svdexp.allocation import Ranks
from svdexp.errors import UserError
from svdexp.models import dobi
from svdexp.models.elastic import Elastic, read_recipe, resize
from svdexp.models.low_rank import LowRankLinear
from svdexp.models.structure import is_linear, replace, weight_of
from svdexp.schema import require
from svdexp.storage import LAYERS

VERSION = 1
SHARD_SIZE = "4GB"


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, ranks: Ranks, elastic: Elastic | None = None) -> None:
    """Write model, tokenizer and layer table to `folder`, which appears under its name only when complete.

    With `elastic`, lower ratios can be loaded from it as well.
    """
    model.config.svdexp = _table(model, ranks) | ({"elastic": asdict(elastic.recipe)} if elastic else {})
    partial, previous = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "previous"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(partial)
    if elastic:
        elastic.save(partial)
    if folder.exists():  # a folder cannot be renamed over a full one
        shutil.rmtree(previous, ignore_errors=True)  # left by a process that was killed below
        folder.rename(previous)
    partial.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def is_compressed(folder: Path) -> bool:
    """Whether `load` is what reads this folder: its config.json has a table of ours, or it is one of Dobi-SVD's."""
    if (folder / dobi.REMAPPED).is_file():
        return True
    try:
        return "svdexp" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False  # for transformers to say what is wrong


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    ratio: float | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The compressed model, in evaluation mode, and its tokenizer.

    Args:
        folder: a checkpoint written by `save`, a run directory that holds one, or a remapped checkpoint of Dobi-SVD's.
        dtype: number format; "auto" keeps the saved one.
        device: where to put the model.
        ratio: kept fraction of the targeted layers' bits, at most the saved one; the model is the one that a run at
            this ratio gives. Needs a checkpoint saved with storage=elastic. None: the model as it was saved.

    Raises:
        UserError: the folder is no checkpoint, its tensors and its tables disagree, or it has no such ratio.
    """
    folder = Path(folder)
    if (folder / "checkpoint").is_dir():
        folder = folder / "checkpoint"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
        if (folder / dobi.REMAPPED).is_file():
            require(ratio is None, f"checkpoint {folder} is one of Dobi-SVD's, which have one size: it takes no ratio=")
            layers, source = _remapped(folder, config, dtype)
        else:
            layers, source = _layer_table(folder, config), _saved(folder, dtype)
        recipe = None if ratio is None else read_recipe(folder, config.svdexp, ratio)
        architecture = _architecture(config)
        model, report = _with_replaced_layers(architecture, layers).from_pretrained(**source, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # damaged JSON or safetensors surface as many types
        raise UserError(f"checkpoint {folder} cannot be read: {str(error).strip().splitlines()[0]}") from error
    wrong = [key for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[part]]
    if wrong:
        raise UserError(f"checkpoint {folder} does not match its config.json: {len(wrong)} tensors, first {wrong[0]}")
    _validate(folder, model, layers)
    ranks = {name: entry["rank"] for name, entry in layers.items()}
    if recipe and ratio:
        ranks |= resize(model, lambda: _empty(architecture, config), folder, recipe, ratio)
    model.config.svdexp = _table(model, ranks)  # what is saved from here is one size
    return model.to(device).eval(), tokenizer


def _table(model: PreTrainedModel, ranks: Ranks) -> dict[str, Any]:
    """The svdexp table of a model with layers of `ranks`; None is dense."""
    layers = {
        name: {"storage": model.get_submodule(name).kind, "rank": rank}
        for name, rank in ranks.items()
        if rank is not None
    }
    return {"version": VERSION, "layers": layers}


def _empty(architecture: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """The dense model without its weights."""
    with torch.device("meta"):
        return architecture(config)


def _saved(folder: Path, dtype: torch.dtype | str) -> dict[str, Any]:
    """What from_pretrained takes to read a checkpoint of ours."""
    return {"pretrained_model_name_or_path": folder, "dtype": dtype, "use_safetensors": True}


def _remapped(folder: Path, config: Any, dtype: torch.dtype | str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The layer table of a checkpoint of Dobi-SVD's, and what from_pretrained takes to fill the model."""
    state, ranks = dobi.read(folder, _empty(_architecture(config), config))
    layers = {name: {"storage": LowRankLinear.kind, "rank": rank} for name, rank in ranks.items()}
    source = {"pretrained_model_name_or_path": None, "config": config, "state_dict": state}
    return layers, source | {"dtype": dobi.DTYPE if dtype == "auto" else dtype}


def _layer_table(folder: Path, config: Any) -> dict[str, dict[str, Any]]:
    table = getattr(config, "svdexp", None)
    if not isinstance(table, dict) or table.get("version") != VERSION:
        raise UserError(f"checkpoint {folder} was not written by this version of svdexp: config.json has no such table")
    layers = table["layers"]
    for name, entry in layers.items():
        if entry.get("storage") not in LAYERS or type(entry.get("rank")) is not int or entry["rank"] < 1:
            raise UserError(f"checkpoint {folder}: the entry of {name} in config.json is not understood: {entry}")
    return dict(layers)


def _validate(folder: Path, model: PreTrainedModel, layers: dict[str, dict[str, Any]]) -> None:
    """Let layers that can check what they were given do so."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        if hasattr(layer, "validate"):
            try:
                layer.validate()
            except UserError as error:
                raise UserError(f"checkpoint {folder}: {name} is damaged: {error}") from error


def _architecture(config: Any) -> type[PreTrainedModel]:
    """The class that transformers would load `config` into."""
    found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return found  # type: ignore[no-any-return]


def _with_replaced_layers(architecture: type[PreTrainedModel], layers: dict[str, dict[str, Any]]) -> Any:
    def initialise(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        for name, entry in layers.items():
            old = self.get_submodule(name)
            if not is_linear(old):
                raise UserError(f"checkpoint: {name} is not a linear layer of {architecture.__name__}")
            weight = weight_of(old)
            m, n = weight.shape
            empty = LAYERS[entry["storage"]]
            bias = old.bias is not None
            replace(self, name, empty(m, n, entry["rank"], bias, dtype=weight.dtype, device=weight.device))

    # The same name, because transformers writes it into config.json when the model is saved again.
    members = {"__init__": initialise, "__module__": architecture.__module__}
    return type(architecture.__name__, (architecture,), members)
