"""Checkpoints of compressed models: what transformers writes, plus what rebuilds the replaced layers.

config.json carries a table of these layers (portable/modeling_svdexp.py) and what elastic.py adds. Its files of
portable/ lie beside it, so transformers alone loads the folder, too, with trust_remote_code=True. `load` runs no code
from a folder and unpickles nothing but tensors. It also reads what Dobi-SVD's and ASVD's references wrote (dobi.py,
asvd.py).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from svdexp.checkpoints import asvd, dobi
from svdexp.checkpoints.architectures import auto_class, auto_class_of, auto_classes_of
from svdexp.checkpoints.elastic import Elastic, read_recipe, resize
from svdexp.checkpoints.intake import at_most, header_shapes, refuse_pickle, require_shapes, tensor_files, weight_files
from svdexp.checkpoints.processor import copy_processor
from svdexp.checkpoints.shards import write_streamed
from svdexp.checkpoints.streaming import streamed
from svdexp.models.hooks import submodules
from svdexp.models.matrices import Ranks, found_in
from svdexp.models.portable.modeling_svdexp import (
    VERSION,
    Table,
    dense_class,
    entry_of,
    is_native,
    low_rank,
    low_rank_reference,
    names_quantiser,
    reference,
)
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_products import quicken, unquicken
from svdexp.models.residency import at_hand, residency_of
from svdexp.models.structure import first_not_finite
from svdexp.record import RESULTS
from svdexp.runtime.disk import whole_folder
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.reading import read_object

SHARD_SIZE = "4GB"
TOKENIZERS = ("*token*", "*vocab*", "*.model", "tekken.json")  # the files of one


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, ranks: Ranks, elastic: Elastic | None = None) -> None:
    """Write model, tokenizer, if there is one, and layer table to `folder`, which appears only when complete.

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
    if residency := residency_of(model):
        write_streamed(model, residency, folder)
    else:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    copy_processor(model, folder)


def label(model: PreTrainedModel, ranks: Ranks) -> None:
    """Let `model`, some of whose layers were replaced, be of the class that has such layers, and its config say so.

    From then on `save_pretrained` writes what transformers loads alone. A matrix whose rank is None is dense, or whole
    in a form of the storage.
    """
    architecture, base = architecture_of(model), dense_class(type(model.base_model))
    model.__class__ = _class(architecture)
    quicken(model)
    dense, modules = {found.name for found in found_in(model)}, dict(model.named_modules())
    layers = {name: entry_of(modules[name], rank) for name, rank in ranks.items() if name not in dense}
    model.config.svdexp = {"version": VERSION, "layers": layers}
    if not is_native(architecture):
        model.config.svdexp["architecture"] = reference(architecture)
    classes = {"AutoModel": low_rank_reference(base)}
    classes |= dict.fromkeys(auto_classes_of(model.config), low_rank_reference(architecture))
    model.config.auto_map = _config_reference(model.config) | classes


def unlabel(model: PreTrainedModel) -> None:
    """Let a model that `label` named, and that has no replaced layer any more, be of its original architecture.

    What it saves has the names that the tensors of this architecture have in files.
    """
    model.__class__ = architecture = architecture_of(model)
    unquicken(model)
    auto = auto_class_of(model.config)
    del model.config.svdexp, model.config.auto_map
    model.__dict__.pop("_weight_conversions", None)  # what reading the compressed one needed: nothing
    if not is_native(architecture):
        architecture.register_for_auto_class(auto)  # type: ignore[no-untyped-call]
        base = type(model.base_model)
        model.config.auto_map = _config_reference(model.config) | {"AutoModel": reference(base)}


def _config_reference(config: Any) -> dict[str, str]:
    """The entry of auto_map for a config with code of its own, which then is saved with it."""
    if is_native(type(config)):
        return {}
    type(config).register_for_auto_class()
    return {"AutoConfig": reference(type(config))}


def is_compressed(folder: Path) -> bool:
    """Whether `load` is what reads this folder: its config.json has a table of ours or ASVD's, or it is Dobi-SVD's."""
    if (folder / dobi.REMAPPED).is_file():
        return True
    try:
        return names_compressed(read_object(folder / "config.json"))
    except UserError:
        return False  # for transformers to say what is wrong


def names_compressed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of ours or of ASVD's."""
    return "svdexp" in config or asvd.is_asvd(config)


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    ratio: float | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """The compressed model, in evaluation mode, and its tokenizer; None where the folder has none.

    Args:
        folder: a checkpoint written by `save`, a run directory that holds one, a remapped checkpoint of Dobi-SVD's, or
            a copy of one of ASVD's repositories.
        dtype: number format; "auto" keeps the saved one.
        device: where to put the model.
        ratio: kept fraction of the targeted layers' bits, at most the saved one; the model is the one that a run at
            this ratio gives. Needs a checkpoint saved with save=elastic. None: the model as it was saved.
        trust_remote_code: run the folder's code where the dense model or the tokenizer came with code of its own.
            Otherwise none is run.

    Raises:
        UserError: the folder is no checkpoint, its tensors and its tables disagree, its numbers are not finite, it has
            no such ratio, or it cannot be loaded without its own code.
    """
    return load_as(folder, dtype, device, ratio, trust_remote_code)


def load_as(
    folder: str | Path,
    dtype: torch.dtype | str,
    device: torch.device | str,
    ratio: float | None,
    trust_remote_code: bool,
    blocks: Path | None = None,
) -> tuple[PreTrainedModel, Any]:
    """`load`; streamed (models/residency.py) given `blocks`, a folder of its own."""
    folder = checkpoint_of(Path(folder))
    try:
        config, architecture = configuration(folder, trust_remote_code)
        source, shapes = _source(folder, config, architecture, dtype, ratio)
        compressed = _checked(_class(architecture), folder, shapes)
        recipe = None if ratio is None else read_recipe(folder, config.svdexp, ratio)
        complete = partial(_require_complete, folder)
        if blocks is None:
            model, report = compressed.from_pretrained(**source, output_loading_info=True)
            complete(report)
        else:
            skeleton, files = empty_model(architecture, config), tensor_files(weight_files(folder))
            how = compressed.from_pretrained, source
            model = streamed(*how, skeleton, torch.device(device), blocks, files, complete)
        tokenizer = _tokenizer(folder, trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # damaged JSON or safetensors surface as many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"checkpoint {folder} cannot be read: {reason}") from error
    layers = config.svdexp["layers"]
    _validate(folder, model, layers)
    ranks = {name: entry["rank"] for name, entry in layers.items()}
    if recipe and ratio:
        ranks |= resize(model, empty_model(architecture, config), folder, recipe, ratio)
    _require_finite(folder, model)
    label(model, ranks)  # what is saved from here is one size
    return model.eval() if blocks else model.to(device).eval(), tokenizer


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer, if it has one: a model's own `save_pretrained` writes none."""
    if not any(path for pattern in TOKENIZERS for path in folder.glob(pattern)):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


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
        kept_none = (folder / RESULTS).is_file()
        hint = (
            "a run that saved none; the same command with save=checkpoint does"
            if kept_none
            else "it has no config.json"
        )
        raise UserError(f"{folder} is not a checkpoint: {hint}")
    return folder


def _source(
    folder: Path, config: Any, architecture: type[PreTrainedModel], dtype: torch.dtype | str, ratio: float | None
) -> tuple[dict[str, Any], Mapping[str, torch.Size]]:
    """What from_pretrained takes to fill the model, and the shapes of the tensors that there are, by name.

    `config` gets the table of its layers, if it has none.
    """
    source: dict[str, Any] = {"config": config, "dtype": dtype}
    if (folder / dobi.REMAPPED).is_file():
        require(ratio is None, f"checkpoint {folder} is one of Dobi-SVD's, which have one size: it takes no ratio=")
        with at_most(dobi.most_tensors(folder), f"checkpoint {folder}"):
            skeleton = empty_model(architecture, config)
        state, ranks = dobi.read(folder, skeleton)
        layers = {name: {"storage": LowRankLinear.kind, "rank": rank} for name, rank in ranks.items()}
        config.svdexp = {"version": VERSION, "layers": layers}
        half = dobi.DTYPE if dtype == "auto" else dtype
        source |= {"pretrained_model_name_or_path": None, "state_dict": state, "dtype": half}
        return source, {name: tensor.shape for name, tensor in state.items()}
    files = weight_files(folder)
    quantised = getattr(config, "quantization_config", None) is not None
    require(
        not quantised or names_quantiser(config),
        f"checkpoint {folder} is quantised by another library; load it with transformers",
    )
    if asvd.is_asvd(vars(config)):
        config.svdexp = {"version": VERSION, "layers": asvd.take_table(config)}
        state = asvd.read(files)
        source |= {"pretrained_model_name_or_path": None, "state_dict": state}
        shapes = {name: tensor.shape for name, tensor in state.items()}
    elif _is_ours(config):
        source |= {"pretrained_model_name_or_path": folder, "use_safetensors": True}
        shapes = header_shapes(files)
    else:
        why = "was not written by this version of svdexp" if hasattr(config, "svdexp") else "is no compressed model's"
        raise UserError(
            f"checkpoint {folder} {why}: config.json has no such table of layers; transformers loads dense ones"
        )
    return source, shapes


def _checked(compressed: type[PreTrainedModel], folder: Path, shapes: Mapping[str, torch.Size]) -> Any:
    """A class whose constructor makes a model of `compressed`, and looks whether tensors of these shapes could fill it.

    from_pretrained calls it on the meta device, before it allocates anything. Another model, made to be looked at,
    would take a seventh of the time of opening a small one.
    """

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        with at_most(len(shapes), f"checkpoint {folder}"):
            compressed.__init__(self, *args, **kwargs)
        self.__class__ = compressed
        require_shapes(folder, shapes, self.state_dict())
        _require_ties(folder, shapes, self)

    return type(compressed.__name__, (compressed,), {"__init__": initialise, "__module__": compressed.__module__})


def _is_ours(config: Any) -> bool:
    table = getattr(config, "svdexp", None)
    return isinstance(table, dict) and table.get("version") == VERSION


def _require_complete(folder: Path, report: dict[str, Any]) -> None:
    """Raise UserError unless the tensors that were read are those that the model has."""
    wrong = [key for part in ("missing_keys", "unexpected_keys") for key in sorted(report[part])]
    if wrong:
        raise UserError(f"checkpoint {folder} does not match its config.json: {len(wrong)} tensors, first {wrong[0]}")


def _require_ties(folder: Path, found: Collection[str], model: PreTrainedModel) -> None:
    """Raise UserError if config.json ties two tensors of which the files hold both."""
    for name, source in model.all_tied_weights_keys.items():
        both = name in found and source in found
        require(not both, f"checkpoint {folder}: config.json ties {name} to {source}, but the files hold both")


def _require_finite(folder: Path, model: PreTrainedModel) -> None:
    """Raise UserError for NaN or infinity in what was read; integers are looked at by the layers that have them."""
    damaged = first_not_finite(model)
    require(damaged is None, f"checkpoint {folder}: {damaged} holds NaN or infinity")


def empty_model(architecture: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model without its weights."""
    with torch.device("meta"):
        return architecture(config)


def _validate(folder: Path, model: PreTrainedModel, layers: Table) -> None:
    """Let layers that can check what they were given do so."""
    blocks = residency.blocks if (residency := residency_of(model)) else ()
    for block, names in groupby(layers, lambda name: next((x for x in blocks if name.startswith(f"{x}.")), "")):
        with at_hand(model, block):
            modules: dict[str, Any] = dict(submodules(model, names))
            for name, layer in modules.items():
                try:
                    if hasattr(layer, "validate"):
                        layer.validate()
                except ValueError as error:
                    raise UserError(f"checkpoint {folder}: {name} is damaged: {error}") from error


def architecture_of(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of the dense model that `model` was made of."""
    return dense_class(type(model))


def own_architecture(folder: Path, trust_remote_code: bool) -> str | None:
    """FILE.CLASS of the dense model that the checkpoint `folder` was made of, if that has code of its own.

    Raises:
        UserError: it has, and is not trusted; or config.json is damaged.
    """
    table = read_object(folder / "config.json").get("svdexp")
    found = table.get("architecture") if isinstance(table, dict) else None
    if found is not None and not (isinstance(found, str) and re.fullmatch(r"\w+\.\w+", found)):
        raise UserError(f"checkpoint {folder}: config.json is damaged: the architecture is {found!r}, not FILE.CLASS")
    if found is not None and not trust_remote_code:
        raise UserError(
            f"checkpoint {folder} is of a model with code of its own, {found}, which is run only where you allow it: "
            "trust_remote_code=True (of svdexp.evaluate model.trust_remote_code=true)"
        )
    return found


def configuration(folder: Path, trust_remote_code: bool) -> tuple[Any, type[PreTrainedModel]]:
    """The config of the checkpoint `folder`, and the class of the dense model that it was made of.

    Raises:
        UserError: as `own_architecture`.
    """
    own = own_architecture(folder, trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=own is not None)
    mapping: Any = auto_class(config)._model_mapping
    return config, mapping[type(config)] if own is None else get_class_from_dynamic_module(own, str(folder))


def _class(architecture: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`architecture` with low-rank layers."""
    hashable: Any = architecture  # for mypy
    return low_rank(hashable)
