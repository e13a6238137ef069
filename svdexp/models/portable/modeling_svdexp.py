"""Language models of transformers, of any architecture, with some linear layers replaced by low-rank ones.

config.json says which, by their names in the causal language model:

    svdexp: {"version": 1, "layers": {name: {"storage": kind, "rank": r, "options": {option: value}}}}

(options only for kinds that have any; a rank of null is a matrix that its kind keeps whole) and asks for
`LowRankLlamaForCausalLM` where the dense model is a LlamaForCausalLM. No such class stands in this file: `__getattr__`
makes it when it is asked for. This file and svdexp_layers.py need torch and transformers only. They travel with every
checkpoint; svdexp itself uses these very files.
"""

import re
from functools import cache
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .svdexp_layers import LAYERS, OPTIONS, WHOLE, LowRankLinear

PREFIX = "LowRank"
VERSION = 1

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

    def initialise(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        self._tp_plan = sharding_plan(self, replace_layers(self, layer_table(config)))
        # From a hub the names of the classes come with the repository's, but a copy has the files of its own.
        for auto_class, name in (getattr(config, "auto_map", None) or {}).items():
            config.auto_map[auto_class] = name.rpartition("--")[2]

    members = {"__init__": initialise, "__module__": __name__, "__doc__": low_rank.__doc__}
    # transformers looks for these two answers in the source of the class's module, which is not this one.
    for asked in ("_can_set_attn_implementation", "_can_set_experts_implementation"):
        if hasattr(architecture, asked):
            members[asked] = getattr(architecture, asked)
    return type(PREFIX + architecture.__name__, (architecture,), members)


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
    options = entry.get("options", {})
    complete = isinstance(options, dict) and options.keys() == set(OPTIONS.get(entry["storage"], ()))
    if entry.get("rank") is None:
        return complete and entry["storage"] in WHOLE
    return complete and type(entry["rank"]) is int and entry["rank"] >= 1


def entry_of(layer: Any, rank: int | None) -> dict[str, Any]:
    """The entry in the table of a layer of one of the kinds."""
    options = {option: getattr(layer, option) for option in OPTIONS.get(layer.kind, ())}
    return {"storage": layer.kind, "rank": rank} | ({"options": options} if options else {})


def replace_layers(model: PreTrainedModel, layers: Table) -> Table:
    """Put empty low-rank layers in the place of `model`'s own; a model without a head leaves out the head's.

    Returns:
        The table under the names that the layers have in `model`.

    Raises:
        ValueError: a name is not that of a linear layer, or a rank is beyond its shape.
    """
    modules = dict(model.named_modules())
    if model.base_model is model:  # its names lack the causal language model's prefix
        start = f"{model.base_model_prefix}."
        layers = {name.removeprefix(start): entry for name, entry in layers.items() if name.startswith(start)}
    for name, entry in layers.items():
        old = modules.get(name)
        if not isinstance(old, nn.Linear | Conv1D):
            raise ValueError(f"{name} of config.json is not a linear layer of {type(model).__name__}")
        n, m = old.weight.shape if isinstance(old, Conv1D) else old.weight.T.shape
        if entry["rank"] is not None and entry["rank"] > min(m, n):
            raise ValueError(f"{name} of shape {(m, n)} cannot have the rank {entry['rank']} of config.json")
        how = {"dtype": old.weight.dtype, "device": old.weight.device} | entry.get("options", {})
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, LAYERS[entry["storage"]](n, entry["rank"], m, old.bias is not None, **how))
    return layers


def sharding_plan(model: PreTrainedModel, layers: Table) -> dict[str, str]:
    """The tensor-parallel plan of the architecture for the layers that are now in it; empty where there is none.

    Of a layer whose output is split, the output side is split; of one whose input is split, the input side. The other
    side is on every device. Pivots reorder what would be split and codes are no parameters, so these have no plan.
    """
    dense: dict[str, str] = dict(getattr(model, "_tp_plan", None) or {})
    rules = {name: re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    plan: dict[str, str] = {}
    for name, entry in layers.items():
        rule = rules[name]
        style = dense.get(rule)
        if style is None:
            continue
        if entry["storage"] != LowRankLinear.kind or not style.startswith(("colwise", "rowwise")):
            return {}
        split, whole = ("rank_out", "rank_in") if style.startswith("colwise") else ("rank_in", "rank_out")
        plan |= {f"{rule}.{split}": style, f"{rule}.{whole}": "replicate"}
    # A rule stays if a dense layer is left that it names. Ours stand first, because vLLM takes the first that fits the
    # beginning of a name.
    gone = {rules[name] for name in layers} - {rule for name, rule in rules.items() if name not in layers}
    return plan | {rule: style for rule, style in dense.items() if rule not in gone}
