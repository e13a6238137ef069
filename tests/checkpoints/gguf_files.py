"""Tiny GGUF files, as llama.cpp's converter writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer
from transformers import PreTrainedModel

SPECIAL = ["<|begin|>", "<|end|>"]


def learnt_tokenizer(words: PreTokenizer, texts: Sequence[str], vocabulary: int = 400) -> Tokenizer:
    """Byte-level BPE whose merges are learnt on `texts` cut by `words`; two special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_header(path: Path, tokenizer: Tokenizer, pre: str | None, **metadata: Any) -> Path:
    """A GGUF file with the tokenizer and a tiny llama's sizes, without tensors; `metadata` adds or replaces keys."""
    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer = GGUFWriter(path, "llama")
    sizes: Mapping[str, int] = {
        "context_length": 64,
        "block_count": 1,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 8,
        "vocab_size": len(tokens),
    }
    writer.add_name("tiny")
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    return _finished(writer, path, metadata)


def write_llama(path: Path, model: PreTrainedModel, divisors: torch.Tensor | None = None, **metadata: Any) -> Path:
    """A GGUF file with the float32 weights of a tiny llama, whose own RoPE scaling is left out.

    `divisors` become rope_freqs.weight; `metadata` adds keys.
    """
    config, weights = model.config, model.state_dict()
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for ours, theirs in [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")]:
        writer.add_tensor(f"{theirs}.weight", weights[f"{ours}.weight"].numpy())
    for block in range(config.num_hidden_layers):
        for ours, theirs in PARTS.items():
            weight = weights[f"model.layers.{block}.{ours}.weight"]
            if (count := heads.get(ours.rpartition(".")[2])) is not None:  # llama.cpp pairs neighbours
                weight = weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
            writer.add_tensor(f"blk.{block}.{theirs}.weight", weight.contiguous().numpy())
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.float().numpy())
    return _finished(writer, path, metadata)


PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _finished(writer: GGUFWriter, path: Path, metadata: Mapping[str, Any]) -> Path:
    adding = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        adding[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
