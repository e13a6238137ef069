"""Checkpoints of compressed models: what transformers writes, plus what rebuilds the replaced layers.

config.json carries a table of these layers (portable/modeling_svdexp.py) and what elastic.py adds. The two files of
portable/ lie beside it, so transformers alone loads the folder, too, with trust_remote_code=True. `load` runs no code
from a folder and unpickles nothing but tensors. It also reads what Dobi-SVD's and ASVD's references wrote (dobi.py,
asvd.py).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from svdexp.allocation import Ranks
from svdexp.disk import whole_folder
from svdexp.errors import UserError
from svdexp.models import asvd, dobi
from svdexp.models.elastic import Elastic, read_recipe, resize
from svdexp.models.intake import header_shapes, refuse_pickle, require_shapes, weight_files
from svdexp.models.portable import modeling_svdexp
from svdexp.models.portable.modeling_svdexp import PREFIX, VERSION, Table, entry_of, low_rank
from svdexp.models.portable.svdexp_layers import LowRankLinear
from svdexp.models.structure import is_linear
from svdexp.reading import read_object
from svdexp.schema import require

SHARD_SIZE = "4GB"
AUTO_CLASS = "AutoModelForCausalLM"


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, ranks: Ranks, elastic: Elastic | None = None) -> None:
    """Write model, tokenizer and layer table to `folder`, which appears under its name only when complete.

    With `elastic`, lower ratios can be loaded from it as well.

    Raises:
        UserError: it cannot be written.
    """
    label(model, ranks)
    if elastic:
        model.config.svdexp |= {"elastic": asdict(elastic.recipe)}
    with whole_folder(folder) as partial:
        write(model, tokenizer, partial)
        if elastic:
            elastic.save(partial)


def write(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """What transformers writes of both."""
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)


def label(model: PreTrainedModel, ranks: Ranks) -> None:
    """Let `model`, some of whose layers were replaced, be of the class that has such layers, and its config say so.

    From then on `save_pretrained` writes what transformers loads alone. A matrix whose rank is None is dense, or whole
    in a form of the storage.
    """
    base = type(model.base_model).__name__
    model.__class__ = _class(type(model))
    modules = {name: model.get_submodule(name) for name in ranks}
    layers = {name: entry_of(module, ranks[name]) for name, module in modules.items() if not is_linear(module)}
    model.config.svdexp = {"version": VERSION, "layers": layers}
    file = modeling_svdexp.__name__.rpartition(".")[2]
    classes = {"AutoModel": PREFIX + base.removeprefix(PREFIX), AUTO_CLASS: type(model).__name__}
    model.config.auto_map = {auto_class: f"{file}.{name}" for auto_class, name in classes.items()}


def unlabel(model: PreTrainedModel) -> None:
    """Let a model that `label` named, and that has no replaced layer any more, be of its original architecture."""
    model.__class__ = architecture_of(model.config)
    del model.config.svdexp, model.config.auto_map


def is_compressed(folder: Path) -> bool:
    """Whether `load` is what reads this folder: its config.json has a table of ours or ASVD's, or it is Dobi-SVD's."""
    if (folder / dobi.REMAPPED).is_file():
        return True
    try:
        config = read_object(folder / "config.json")
        return "svdexp" in config or asvd.is_asvd(config)
    except UserError:
        return False  # for transformers to say what is wrong


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    ratio: float | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The compressed model, in evaluation mode, and its tokenizer.

    Args:
        folder: a checkpoint written by `save`, a run directory that holds one, a remapped checkpoint of Dobi-SVD's, or
            a copy of one of ASVD's repositories.
        dtype: number format; "auto" keeps the saved one.
        device: where to put the model.
        ratio: kept fraction of the targeted layers' bits, at most the saved one; the model is the one that a run at
            this ratio gives. Needs a checkpoint saved with storage=elastic. None: the model as it was saved.

    Raises:
        UserError: the folder is no checkpoint, its tensors and its tables disagree, or it has no such ratio.
    """
    folder = checkpoint_of(Path(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = architecture_of(config)
        compressed: Any = _class(architecture)
        source = _source(folder, config, architecture, dtype, ratio)
        recipe = None if ratio is None else read_recipe(folder, config.svdexp, ratio)
        model, report = compressed.from_pretrained(**source, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # damaged JSON or safetensors surface as many types
        raise UserError(f"checkpoint {folder} cannot be read: {str(error).strip().splitlines()[0]}") from error
    _require_complete(folder, report)
    layers = config.svdexp["layers"]
    _validate(folder, model, layers)
    ranks = {name: entry["rank"] for name, entry in layers.items()}
    if recipe and ratio:
        ranks |= resize(model, lambda: empty_model(architecture, config), folder, recipe, ratio)
    label(model, ranks)  # what is saved from here is one size
    return model.to(device).eval(), tokenizer


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint that `folder` is, or, if it is a run directory, holds.

    Raises:
        UserError: there is none.
    """
    refuse_pickle(folder)
    folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if not (folder / "config.json").is_file():
        for path in sorted(folder.glob("*")):
            refuse_pickle(path)
        raise UserError(f"{folder} is not a checkpoint: it has no config.json")
    return folder


def _source(
    folder: Path, config: Any, architecture: type[PreTrainedModel], dtype: torch.dtype | str, ratio: float | None
) -> dict[str, Any]:
    """What from_pretrained takes to fill the model; `config` gets the table of its layers, if it has none."""
    source: dict[str, Any] = {"config": config, "dtype": dtype}
    if (folder / dobi.REMAPPED).is_file():
        require(ratio is None, f"checkpoint {folder} is one of Dobi-SVD's, which have one size: it takes no ratio=")
        state, ranks = dobi.read(folder, empty_model(architecture, config))
        layers = {name: {"storage": LowRankLinear.kind, "rank": rank} for name, rank in ranks.items()}
        config.svdexp = {"version": VERSION, "layers": layers}
        half = dobi.DTYPE if dtype == "auto" else dtype
        return source | {"pretrained_model_name_or_path": None, "state_dict": state, "dtype": half}
    files = weight_files(folder)
    quantised = getattr(config, "quantization_config", None) is not None
    require(not quantised, f"checkpoint {folder} is quantised by another library; load it with transformers")
    if asvd.is_asvd(vars(config)):
        config.svdexp = {"version": VERSION, "layers": asvd.take_table(config)}
        state = asvd.read(files)
        source |= {"pretrained_model_name_or_path": None, "state_dict": state}
        shapes = {name: tensor.shape for name, tensor in state.items()}
    elif _is_ours(config):
        source |= {"pretrained_model_name_or_path": folder, "use_safetensors": True}
        shapes = header_shapes(files)
    else:
        raise UserError(f"checkpoint {folder} was not written by this version of svdexp: config.json has no such table")
    require_shapes(folder, shapes, empty_model(_class(architecture), config).state_dict())
    return source


def _is_ours(config: Any) -> bool:
    table = getattr(config, "svdexp", None)
    return isinstance(table, dict) and table.get("version") == VERSION


def _require_complete(folder: Path, report: dict[str, Any]) -> None:
    """Raise UserError unless the tensors that were read are those that the model has."""
    wrong = [key for part in ("missing_keys", "unexpected_keys") for key in sorted(report[part])]
    if wrong:
        raise UserError(f"checkpoint {folder} does not match its config.json: {len(wrong)} tensors, first {wrong[0]}")


def empty_model(architecture: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model without its weights."""
    with torch.device("meta"):
        return architecture(config)


def _validate(folder: Path, model: PreTrainedModel, layers: Table) -> None:
    """Let layers that can check what they were given do so."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        if hasattr(layer, "validate"):
            try:
                layer.validate()
            except ValueError as error:
                raise UserError(f"checkpoint {folder}: {name} is damaged: {error}") from error


def architecture_of(config: Any) -> type[PreTrainedModel]:
    """The class that transformers would load a dense model of `config` into."""
    found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return found  # type: ignore[no-any-return]


def _class(architecture: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`architecture` with low-rank layers; transformers writes its files along with such a model."""
    hashable: Any = architecture  # for mypy
    found: Any = architecture if architecture.__name__.startswith(PREFIX) else low_rank(hashable)
    found.register_for_auto_class(AUTO_CLASS)
    return found  # type: ignore[no-any-return]
