"""Tiny mixtures of experts, one of each kind of architecture."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from svdexp.models.matrices import Matrix
from svdexp.models.structure import Targets, find_matrices

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Latent attention, of which each has a number of its own, and experts beside shared ones.
DEEPSEEK = SHAPE | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}

EXPERTS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "deepseek_v2": DeepseekV2Config(**DEEPSEEK, topk_method="greedy", n_group=1, topk_group=1),
    "deepseek_v3": DeepseekV3Config(**DEEPSEEK, n_group=2, topk_group=1),
    "gpt_oss": GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=6, num_experts_per_tok=2),
    "llama4": Llama4TextConfig(
        **SHAPE,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=48,
        interleave_moe_layer_step=1,
        attention_chunk_size=32,
    ),
}


def tiny_experts(name: str) -> PreTrainedModel:
    """A float32 model with random weights, the same at every call; biases are random too, so they count."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(EXPERTS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def experts_in(model: PreTrainedModel) -> list[Matrix]:
    """The matrices of its experts."""
    return [matrix for matrix in find_matrices(model, Targets()) if matrix.rivals]
