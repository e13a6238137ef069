"""What vLLM's transformers backend finds in a model that it builds; vLLM itself runs in `make engines`."""

import copy
import inspect
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from svdexp.models.portable.modeling_svdexp import low_rank
from svdexp.models.portable.svdexp_serving import ATTENTION
from tests.conftest import TINY

TABLE = {
    "version": 1,
    "layers": {
        "model.layers.0.mlp.up_proj": {"storage": "factors", "rank": 3},
        "model.layers.1.mlp.up_proj": {"storage": "factors", "rank": 4},
        "model.layers.1.self_attn.q_proj": {"storage": "factors", "rank": 5},
    },
}
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
JOINED = {
    "version": 1,
    "layers": {
        f"model.layers.{block}.{part}": {"storage": "factors", "rank": 3 + rank}
        for block in range(2)
        for rank, part in enumerate(PARTS)
    },
    "together": [
        [f"model.layers.{block}.{part}" for part in of] for block in range(2) for of in (PARTS[:3], PARTS[3:])
    ],
}


def built(attention: str, table: Any = TABLE, architecture: Any = LlamaForCausalLM) -> Any:
    """A model of this attention, with low-rank layers in two of three blocks."""
    config: Any = copy.deepcopy(TINY["llama"])
    config.svdexp = table
    return low_rank(architecture)._from_config(config, attn_implementation=attention).eval()


def load(module: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], prefix: str = "") -> Iterator[str]:
    """As vLLM does it: a module that has `load_weights` takes its own, else its children do; the names filled."""
    for name, group in groupby(weights, lambda entry: entry[0].partition(".")[0]):
        inner = [(rest.partition(".")[2], tensor) for rest, tensor in group]
        child: Any = getattr(module, name)
        if isinstance(child, nn.Parameter):
            child.data.copy_(inner[0][1])
            yield prefix + name
        elif hasattr(child, "load_weights"):
            yield from (f"{prefix}{name}.{filled}" for filled in child.load_weights(inner))
        else:
            yield from load(child, inner, f"{prefix}{name}.")


def joined(architecture: Any) -> tuple[Any, Any]:
    """A model that vLLM builds and fills, and the same one elsewhere."""
    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    served, plain = built(ATTENTION, JOINED, architecture), built("sdpa", JOINED, architecture)
    for parameter in served.parameters():
        parameter.data.fill_(float("nan"))
        parameter.weight_loader = lambda own, tensor: own.data.copy_(tensor)
    filled = set(load(served, sorted(plain.state_dict().items())))
    assert filled == dict(served.named_parameters()).keys()
    return served, plain


@torch.no_grad()
@pytest.mark.parametrize("architecture", [LlamaModel, LlamaForCausalLM])
def test_first_factors_of_one_input_are_one_product(architecture: Any, windows: torch.Tensor) -> None:
    served, plain = joined(architecture)
    block = served.get_submodule("layers" if architecture is LlamaModel else "model.layers")[1]
    assert block.self_attn.q_proj.rank_in.out_features == 3 + 4 + 5
    assert block.mlp.gate_proj.rank_in.out_features == 6 + 7
    assert not any(hasattr(part, "rank_in") for part in (block.self_attn.k_proj, block.mlp.up_proj))
    calls: list[int] = []
    block.self_attn.q_proj.rank_in.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        torch.testing.assert_close(served(windows)[0], plain(windows)[0])
    assert len(calls) == 2
    assert block.self_attn.q_proj.joint.given is None  # nothing is kept of a pass
    assert not any(hasattr(part, "joint") for part in plain.modules())


@torch.no_grad()
def test_other_inputs_have_their_own_product() -> None:
    served, plain = joined(LlamaModel)
    ours, theirs = (model.layers[0].self_attn for model in (served, plain))
    first, second = torch.randn(2, 5, 32)
    for part, x in [("q", first), ("k", second), ("q", second), ("q", second), ("v", first)]:
        found, expected = (module.get_submodule(f"{part}_proj")(x) for module in (ours, theirs))
        torch.testing.assert_close(found, expected)


def test_what_is_no_plain_factor_stays_apart() -> None:
    table: Any = copy.deepcopy(JOINED)
    table["layers"]["model.layers.0.self_attn.k_proj"]["storage"] = "pivot"
    blocks = built(ATTENTION, table).model.layers
    assert not hasattr(blocks[0].self_attn.q_proj, "joint")
    assert hasattr(blocks[1].self_attn.q_proj, "joint")


def test_modules_of_one_class_have_the_same_children_compressed(windows: torch.Tensor) -> None:
    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    served, plain = built(ATTENTION), built("sdpa")
    served.load_state_dict(plain.state_dict())
    mlps = [type(block.mlp) for block in served.model.layers]
    assert mlps[0] is mlps[1] is not mlps[2]
    assert issubclass(mlps[0], mlps[2])
    attention = [type(block.self_attn) for block in served.model.layers]
    assert attention[0] is attention[2] is not attention[1]
    assert len({type(block.mlp) for block in plain.model.layers}) == 1
    torch.testing.assert_close(served(windows).logits, plain(windows).logits)


def test_modules_with_other_children_compressed_are_of_other_classes() -> None:
    """vLLM would take the dense ones of the first for those of all."""
    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    table: Any = {"version": 1, "layers": {}}
    for block, part in enumerate(["up_proj", "gate_proj", "up_proj"]):
        table["layers"][f"model.layers.{block}.mlp.{part}"] = {"storage": "factors", "rank": 3}
    first, second, third = (type(block.mlp) for block in built(ATTENTION, table).model.layers)
    assert first is third is not second


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForCausalLM"])
def test_the_constructor_has_its_architecture_s_signature(name: str) -> None:
    import transformers

    architecture = getattr(transformers, name)
    assert inspect.signature(low_rank(architecture).__init__) == inspect.signature(architecture.__init__)
