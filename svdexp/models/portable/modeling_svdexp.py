"""Language models of transformers, of any architecture, with some linear layers replaced by low-rank ones.

config.json says which, by their names in the causal language model:

    svdexp: {"version": 1, "layers": {name: {"storage": kind, "rank": r, "options": {option: value}}}}

(options only for kinds that have any; a rank of null is a matrix that its kind keeps whole) and asks for
`LowRankLlamaForCausalLM` where the dense model is a LlamaForCausalLM. No such class stands in this file: `__getattr__`
makes it when it is asked for. Where the dense model's class has code of its own, that code travels, too, and one more
file, modeling_low_rank.py, makes its classes; the table then has `"architecture": "FILE.CLASS"` of the dense one.

config.json also names a quantiser, which makes the same model without running this file where svdexp is imported.

This file and those of the formats, svdexp_FORMAT.py, need torch and transformers only. Every checkpoint has this one,
svdexp_experts.py, svdexp_latent.py, svdexp_products.py, which says how layers multiply, svdexp_serving.py, those of its
own formats, and in svdexp_layers.py the list of these; svdexp itself uses the very same.
"""

import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, wraps
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.pytorch_utils import Conv1D

from .svdexp_base import Replacement, blank
from .svdexp_experts import ExpertList, split_named
from .svdexp_latent import LatentCache
from .svdexp_layers import LAYERS
from .svdexp_products import quicken
from .svdexp_serving import is_served, join, tell_apart

PREFIX = "LowRank"
VERSION = 1
QUANTISED = {"quant_method": "svdexp"}  # what config.json says to a transformers that knows svdexp
OWN_CODE = "modeling_low_rank"  # the file that makes the classes of architectures with code of their own
FORMATS = "svdexp_layers"  # the file that names the formats of a checkpoint

Table = dict[str, dict[str, Any]]


def __getattr__(name: str) -> type[PreTrainedModel]:
    """`LowRankX` for any model X of transformers."""
    found = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return low_rank(found)  # type: ignore[arg-type]  # mypy would not hash a class of modules
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def low_rank(architecture: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of the model class `architecture` whose constructor replaces the layers that its config names."""

    @wraps(architecture.__init__)  # vLLM looks at the types of its arguments, and Any is none
    def initialise(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        furnish(self)

    def from_pretrained(cls: Any, /, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        # The constructor puts the layers in, so no quantiser is asked for, and another library's can be. Programs that
        # have read config.json themselves, lm-eval for one, give what it says of svdexp's.
        if is_own_quantiser(kwargs.get("quantization_config")):
            del kwargs["quantization_config"]
        loaded: Any = architecture.from_pretrained
        with uncollected():
            return loaded.__func__(cls, *args, config=without_quantiser(config), **kwargs)

    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        if is_main_process:
            kinds = {entry["storage"] for entry in layer_table(self.config).values()}
            write_code({architecture, dense_class(type(self.base_model))}, kinds, Path(save_directory))
        # Tensors keep the names that they have here. Those of the original files, to which transformers would turn
        # back, may be of tensors made of several matrices, and now there may be factors in the place of one.
        how = kwargs | {"save_original_format": False}
        with naming_quantiser(self.config):
            architecture.save_pretrained(self, save_directory, is_main_process, *args, **how)

    def latent_cache(self: Any) -> LatentCache:
        """A fresh cache that keeps less: model.generate(tokens, past_key_values=model.latent_cache())."""
        return LatentCache(self)

    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        # transformers changes the embedding first, and only then finds that it cannot change such a head.
        rows = self.get_input_embeddings().weight.shape[0]
        step = pad_to_multiple_of or 1
        wanted = -(-(new_num_tokens or rows) // step) * step
        if wanted != rows and isinstance(self.get_output_embeddings(), Replacement):
            raise ValueError(
                f"the head of this model is compressed (targets.lm_head=true) and stays one of {rows} tokens, so the "
                f"embedding cannot have {wanted}: add tokens to the dense model, or compress without targets.lm_head"
            )
        return architecture.resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of, *args, **kwargs)

    def reduce(self: Any) -> tuple[Any, ...]:
        """For pickles: made of the dense class, and then filled."""
        return blank, (low_rank, architecture), self.__dict__

    members: dict[str, Any] = {"__init__": initialise, "save_pretrained": save_pretrained, "latent_cache": latent_cache}
    members |= {"__reduce__": reduce, "resize_token_embeddings": resize_token_embeddings}
    members |= {"from_pretrained": classmethod(from_pretrained)}
    members |= {"__module__": __name__, "__doc__": low_rank.__doc__, "_low_rank_of": architecture}
    # transformers would copy this file and what it imports by name; `save_pretrained` knows the formats, and the config
    # the names of the classes.
    members |= {"_auto_class": None, "register_for_auto_class": classmethod(lambda cls, auto_class="": None)}
    if is_native(architecture):
        # Of what it takes for a stranger's class transformers initialises no module whose own tensors have been read,
        # though the architecture may fill the buffers of its children then.
        members["is_custom_code"] = classmethod(lambda cls: False)
    # transformers looks for these two answers in the source of the class's module, which is not this one.
    for asked in ("_can_set_attn_implementation", "_can_set_experts_implementation"):
        if hasattr(architecture, asked):
            members[asked] = getattr(architecture, asked)
    return type(PREFIX + architecture.__name__, (architecture,), members)


def furnish(model: Any) -> None:
    """Put the empty layers that the config of `model` names into it, and what goes with them.

    Raises:
        ValueError: as `layer_table` and `replace_layers`.
    """
    layers = replace_layers(model, layer_table(model.config))
    model._tp_plan = sharding_plan(model, layers)
    quicken(model)
    if is_served(model.config):
        join(model, together(model))
        tell_apart(model, layers)
    # From a hub the names of the classes come with the repository's, but a copy has the files of its own.
    for auto_class, name in (getattr(model.config, "auto_map", None) or {}).items():
        model.config.auto_map[auto_class] = name.rpartition("--")[2]


def together(model: Any) -> list[list[str]]:
    """The layers that the table says are given the same input, by the names that they have in `model`."""
    groups: list[list[str]] = model.config.svdexp.get("together", [])
    start = f"{model.base_model_prefix}." if model.base_model is model else ""
    return [[name.removeprefix(start) for name in names] for names in groups]


def names_quantiser(config: Any) -> bool:
    """Whether a config asks for svdexp's quantiser."""
    return getattr(config, "quantization_config", None) == QUANTISED


def is_own_quantiser(asked: Any) -> bool:
    """Whether a `quantization_config`, a mapping or transformers' object, asks for svdexp's quantiser."""
    method = asked.get("quant_method") if isinstance(asked, dict) else getattr(asked, "quant_method", None)
    return bool(method == QUANTISED["quant_method"])


def without_quantiser(config: Any) -> Any:
    """`config`, or a copy of it that asks for no quantiser if it asks for svdexp's."""
    if names_quantiser(config):
        config = copy(config)
        del config.quantization_config
    return config


@contextmanager
def uncollected() -> Iterator[None]:
    """Within this context nobody looks for garbage.

    A model stays, and has more objects than the dense one: enough for Python to go through all that torch and
    transformers brought, which takes longer than opening a small model.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def naming_quantiser(config: Any) -> Iterator[None]:
    """Within this context `config` asks for svdexp's quantiser, unless it asks for another.

    In memory it does not: other libraries would take the model for one whose numbers they may not touch.
    """
    own = getattr(config, "quantization_config", None) is None
    if own:
        config.quantization_config = dict(QUANTISED)
    try:
        yield
    finally:
        if own:
            del config.quantization_config


def dense_class(found: type[Any]) -> type[Any]:
    """The class that `low_rank` made `found` of, or `found` itself."""
    dense: type[Any] = found.__dict__.get("_low_rank_of", found)
    return dense


def is_native(architecture: type[Any]) -> bool:
    """Whether a class is one of transformers' own, which need not travel."""
    return architecture.__module__.startswith("transformers.")


def reference(architecture: type[Any]) -> str:
    """FILE.CLASS of a class with code of its own."""
    return f"{architecture.__module__.rpartition('.')[2]}.{architecture.__name__}"


def low_rank_reference(architecture: type[Any]) -> str:
    """FILE.CLASS of `low_rank(architecture)`, as config.json's auto_map names it."""
    file = __name__.rpartition(".")[2] if is_native(architecture) else OWN_CODE
    return f"{file}.{PREFIX}{architecture.__name__}"


def write_code(architectures: Iterable[type[Any]], kinds: Iterable[str], folder: Path) -> None:
    """Put the code of a model of `architectures` with layers of `kinds` into `folder`.

    Raises:
        ValueError: a class stands in no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    custom_object_save(low_rank, folder)
    write_formats([LAYERS[kind] for kind in sorted(kinds)], folder)
    own = sorted((found for found in architectures if not is_native(found)), key=reference)
    if own:
        write_own_code(own, folder)


def write_formats(layers: Iterable[type[nn.Module]], folder: Path) -> None:
    """Put the files of these formats into `folder`, and the one that names them."""
    imports, entries = ["from .svdexp_base import Replacement"], []
    for layer in layers:
        custom_object_save(layer, folder)
        file, _, name = reference(layer).rpartition(".")
        imports.append(f"from .{file} import {name}")
        entries.append(f"    {name}.kind: {name},")
    title = '"""The formats of this checkpoint."""'
    table = ["LAYERS: dict[str, type[Replacement]] = {", *entries, "}"]
    (folder / f"{FORMATS}.py").write_text("\n".join([title, "", *sorted(imports), "", *table, ""]))


def write_own_code(architectures: Iterable[type[Any]], folder: Path) -> None:
    """Put the files of classes with code of their own into `folder`, and the one that makes those of this model.

    Raises:
        ValueError: a class stands in no file.
    """
    imports, classes = ["from .modeling_svdexp import low_rank"], []
    for architecture in architectures:
        if not custom_object_save(architecture, folder):
            raise ValueError(f"{architecture.__name__} is defined in no file that could be saved along with the model")
        file, _, name = reference(architecture).rpartition(".")
        imports.append(f"from .{file} import {name}")
        classes.append(f"{PREFIX}{name} = low_rank({name})")
    title = '"""The classes of this checkpoint: those of the files that it came with, with low-rank layers."""'
    (folder / f"{OWN_CODE}.py").write_text("\n".join([title, "", *sorted(imports), "", *classes, ""]))


def layer_table(config: Any) -> Table:
    """The replaced layers of a config.

    Raises:
        ValueError: it has no table, or one that this file does not understand.
    """
    table = getattr(config, "svdexp", None)
    if not isinstance(table, dict) or table.get("version") != VERSION or not isinstance(table.get("layers"), dict):
        raise ValueError(f"config.json has no table `svdexp` of version {VERSION}")
    layers: Table = table["layers"]
    for name, entry in layers.items():
        if not _understood(entry):
            raise ValueError(f"the entry of {name} in config.json is not understood: {entry}")
    return layers


def _understood(entry: Any) -> bool:
    """Whether an entry of the table is complete; the layer looks at the values of options itself."""
    if not isinstance(entry, dict) or entry.get("storage") not in LAYERS:
        return False
    options, layer = entry.get("options", {}), LAYERS[entry["storage"]]
    complete = (
        isinstance(options, dict)
        and options.keys() - layer.switches == set(layer.options)
        and all(type(options.get(switch, False)) is bool for switch in layer.switches)
    )
    if entry.get("rank") is None:
        return complete and layer.keeps_whole
    return complete and type(entry["rank"]) is int and entry["rank"] >= 1


def entry_of(layer: Any, rank: int | None) -> dict[str, Any]:
    """The entry in the table of a layer of one of the kinds."""
    options = {option: getattr(layer, option) for option in layer.options}
    options |= {switch: True for switch in layer.switches if getattr(layer, switch)}
    return {"storage": layer.kind, "rank": rank} | ({"options": options} if options else {})


def replace_layers(model: PreTrainedModel, layers: Table) -> Table:
    """Put empty low-rank layers in the place of `model`'s own; a model without a head leaves out the head's.

    Returns:
        The table under the names that the layers have in `model`.

    Raises:
        ValueError: a name is not that of a linear layer, or a rank is beyond its shape.
    """
    split_named(model, layers)
    modules = dict(model.named_modules())
    # The names in a model without a head lack the causal language model's prefix.
    if model.base_model is model and not layers.keys() <= modules.keys():
        start = f"{model.base_model_prefix}."
        layers = {name.removeprefix(start): entry for name, entry in layers.items() if name.startswith(start)}
        split_named(model, layers)
        modules = dict(model.named_modules())
    for name, entry in layers.items():
        old = modules.get(name)
        if not isinstance(old, nn.Linear | Conv1D):
            raise ValueError(f"{name} of config.json is not a linear layer of {type(model).__name__}")
        n, m = old.weight.shape if isinstance(old, Conv1D) else old.weight.T.shape
        if entry["rank"] is not None and entry["rank"] > min(m, n):
            raise ValueError(f"{name} of shape {(m, n)} cannot have the rank {entry['rank']} of config.json")
        how = {"dtype": old.weight.dtype, "device": old.weight.device} | entry.get("options", {})
        parent, _, child = name.rpartition(".")
        empty = LAYERS[entry["storage"]].empty(n, entry["rank"], m, old.bias is not None, **how)
        setattr(modules[parent], child, empty)
    return layers


def sharding_plan(model: PreTrainedModel, layers: Table) -> dict[str, str]:
    """The tensor-parallel plan of the architecture for the layers that are now in it; empty where there is none.

    Of a layer whose output is split, the output side is split; of one whose input is split, the input side. The other
    side is on every device. Pivots reorder what would be split and codes are no parameters, so these have no plan, nor
    have experts.
    """
    if any(isinstance(part, ExpertList) for part in model.modules()):
        return {}
    dense: dict[str, str] = dict(getattr(model, "_tp_plan", None) or {})
    rules = {name: re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    plan: dict[str, str] = {}
    for name, entry in layers.items():
        rule = rules[name]
        style = dense.get(rule)
        if style is None:
            continue
        sides = LAYERS[entry["storage"]].sides
        if sides is None or not style.startswith(("colwise", "rowwise")):
            return {}
        split, whole = sides if style.startswith("colwise") else reversed(sides)
        plan |= {f"{rule}.{split}": style, f"{rule}.{whole}": "replicate"}
    # A rule stays if a dense layer is left that it names. Ours stand first, because vLLM takes the first that fits the
    # beginning of a name.
    gone = {rules[name] for name in layers} - {rule for name, rule in rules.items() if name not in layers}
    return plan | {rule: style for rule, style in dense.items() if rule not in gone}
