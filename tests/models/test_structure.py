"""Layers are found by structure, for every architecture, and what cannot be handled is named."""

import ast

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    JetMoeConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from svdexp.allocation import Uniform
from svdexp.engine.plan import plan
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets, find_blocks, find_matrices, unknown_stacks, vectors
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage
from tests.conftest import LLAMA_LIKE, tiny_model

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())

LAYERS_PER_BLOCK = {"gpt2": 4, "gpt_neox": 4, "llama": 7, "llama_gqa": 7, "mistral": 7, "opt": 6, "qwen2": 7}


@pytest.mark.parametrize(("name", "count"), LAYERS_PER_BLOCK.items())
def test_all_linear_layers_of_the_blocks_are_found(name: str, count: int) -> None:
    model = tiny_model(name)
    layers = find_matrices(model, Targets())
    prefix, blocks = find_blocks(model)
    assert len(layers) == count * len(blocks) == count * 3
    assert all(layer.name.startswith(f"{layer.group}.") and layer.group.startswith(prefix) for layer in layers)


def test_weight_is_out_by_in_for_transposed_layers() -> None:
    model = tiny_model("gpt2")
    layer = next(layer for layer in find_matrices(model, Targets()) if layer.name.endswith("c_attn"))
    module = model.get_submodule(layer.name)
    assert (layer.m, layer.n) == (96, 32)
    x = torch.randn(5, 32)
    torch.testing.assert_close(module(x), x @ LINEAR.weight(module).T + module.bias)


def test_patterns_include_and_exclude(llama: PreTrainedModel) -> None:
    names = [x.name for x in find_matrices(llama, Targets(include=["*.k_proj", "*.v_proj"], exclude=["*.0.*"]))]
    assert names == [f"model.layers.{i}.self_attn.{p}_proj" for i in (1, 2) for p in "kv"]
    with pytest.raises(UserError, match=r"targets\.include"):
        find_matrices(llama, Targets(include=["*.no_such_layer"]))


def test_the_head_only_when_asked_and_never_when_tied() -> None:
    untied = tiny_model("llama")
    assert "lm_head" not in {layer.name for layer in find_matrices(untied, Targets())}
    assert find_matrices(untied, Targets(lm_head=True))[-1].name == "lm_head"
    with pytest.raises(UserError, match=r"targets\.lm_head.*tied"):
        find_matrices(tiny_model("llama_gqa"), Targets(lm_head=True))


def stacks() -> PreTrainedModel:
    """A mixture whose experts are not called by transformers' experts interface."""
    sizes = {key: LLAMA_LIKE[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = JetMoeConfig(**sizes, num_key_value_heads=2, kv_channels=8, num_local_experts=2, num_experts_per_tok=1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def test_stacks_of_another_kind_are_refused_by_name_and_can_be_excluded() -> None:
    model = stacks()
    with pytest.raises(UserError, match=r"model\.layers\.0\..*put_linear.* stacks matrices") as refusal:
        find_matrices(model, Targets())
    assert "targets.exclude" in str(refusal.value)
    layers = find_matrices(model, Targets(exclude=["*put_linear"]))
    assert {layer.name.rpartition(".")[2] for layer in layers} == {"kv_proj", "layer"}


def test_the_advice_for_stacks_holds_for_all_blocks_and_keeps_what_is_excluded() -> None:
    model = stacks()
    with pytest.raises(UserError, match=r"all 12 of its kind.*targets\.exclude=") as refusal:
        find_matrices(model, Targets(exclude=["*.kv_proj"]))
    advice = ast.literal_eval(str(refusal.value).rpartition("targets.exclude=")[2])
    assert advice[0] == "*.kv_proj"
    layers = find_matrices(model, Targets(exclude=advice))
    assert {layer.name.rpartition(".")[2] for layer in layers} == {"layer"}


def test_experts_can_be_excluded() -> None:
    model = AutoModelForCausalLM.from_config(MixtralConfig(**LLAMA_LIKE, num_local_experts=2))
    assert sum(".experts." in layer.name for layer in find_matrices(model, Targets())) == 12
    layers = find_matrices(model, Targets(exclude=["*.experts.*"]))
    assert {layer.name.rpartition(".")[2] for layer in layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_gates_of_one_output_are_left_dense_and_named() -> None:
    config = Qwen2MoeConfig(**LLAMA_LIKE, num_key_value_heads=2, num_experts=2, moe_intermediate_size=16)
    model = AutoModelForCausalLM.from_config(config)
    gates = [f"model.layers.{index}.mlp.shared_expert_gate" for index in range(3)]
    assert list(vectors(model, Targets()).values()) == [gates]
    assert not {layer.name for layer in find_matrices(model, Targets())} & set(gates)
    assert vectors(model, Targets(exclude=["*_gate"])) == {}


def test_a_few_stacks_beside_other_layers_are_left_dense_and_named() -> None:
    config = RecurrentGemmaConfig(**LLAMA_LIKE, lru_width=32)
    model = AutoModelForCausalLM.from_config(config)
    ((reason, names),) = unknown_stacks(model, Targets()).items()
    assert "model.layers.0.temporal_block.rg_lru.input_gate_weight" in names
    done = plan(model, WHITENED, 0.8, Targets())
    assert done.left_dense[reason] == names


def test_vectors_of_many_dimensions_are_no_matrices() -> None:
    config = RwkvConfig(vocab_size=96, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=64)
    model = AutoModelForCausalLM.from_config(config)
    assert model.get_parameter("rwkv.blocks.0.attention.time_mix_key").shape == (1, 1, 32)
    assert len(find_matrices(model, Targets())) == 14


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no list of blocks"):
        find_blocks(nn.Linear(2, 2))


def test_a_damaged_weight_is_named(llama: PreTrainedModel) -> None:
    llama.model.layers[1].mlp.up_proj.weight[2, 3] = torch.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj"):
        find_matrices(llama, Targets())


def test_damage_outside_the_layers_is_named(llama: PreTrainedModel) -> None:
    llama.model.norm.weight[3] = torch.inf
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN or infinity"):
        find_matrices(llama, Targets())


def test_weights_that_need_scales_beside_them_are_refused(llama: PreTrainedModel) -> None:
    layer = llama.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj is already quantised"):
        find_matrices(llama, Targets())


def test_a_model_with_adapters_is_refused(llama: PreTrainedModel) -> None:
    llama.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="carries adapters"):
        find_matrices(llama, Targets())
