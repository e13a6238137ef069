"""Command line: `python -m svdexp.bench.families` tries all causal and image-text families of transformers.

Of each a tiny model with random weights is made from its config class, saved, loaded as a run loads it, compressed,
saved, loaded again by svdexp and by plain transformers, and asked to generate. docs/models.md has what became of them.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from svdexp.runtime.invocation import command

WORKS = "●"
MARKS = ("<!-- families -->", "<!-- /families -->")
# Sizes by the names that configs have for them; a config gets those that it has.
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "text_vocab_size": 96,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"], 32),
    **dict.fromkeys(["attention_hidden_size", "emb_dim", "inner_dim", "embed_dim", "out_hidden_size"], 32),
    **dict.fromkeys(["encoder_hidden_size", "text_hidden_size", "qformer_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "d_inner"], 64),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "dff"], 64),
    **dict.fromkeys(
        ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth"], 2
    ),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "n_head_kv"], 2),
    **dict.fromkeys(["head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"], 8),
    **dict.fromkeys(["global_head_dim", "swa_head_dim", "index_head_dim"], 8),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"], 2),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"], 24),
    **dict.fromkeys(["moe_ffn_hidden_size", "shared_intermediate_size", "expert_intermediate_size"], 24),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"], 64),
    **dict.fromkeys(["state_size", "ssm_state_size", "mamba_d_state"], 8),
    **dict.fromkeys(["mamba_n_heads", "n_mamba_heads", "mamba_num_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_headdim", "mamba_head_dim"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], 1),
    "mamba_d_ssm": 64,
    "time_step_rank": 4,
    "lru_width": 32,
    "rotary_dim": 8,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "chunk_size": 8,
}
# Rotary positions of three kinds, which share half of a head's width.
TURNS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
# What some families want beside these: sizes that depend on others, and blocks of every kind.
MORE: dict[str, dict[str, Any]] = {
    **{
        f"{name}_text": {"rope_parameters": TURNS}
        for name in ("glm4v", "glm_ocr", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl")
    },
    "glm4v_moe_text": {"rope_parameters": TURNS | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "qwen2_5_omni_text": {"rope_parameters": TURNS},
    "bailing_hybrid": {"num_hidden_layers": 8},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "kimi_linear": {"num_hidden_layers": 8},
    "lfm3": {"num_hidden_layers": 4},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
    "qwen4_exp_text": {
        "num_hidden_layers": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "use_mem_rope": False,
    },
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "local_attn_chunk_length": 8,
        "hidden_size": 32,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# More than that is no tiny model: its config has sizes of other names.
MOST = 20_000_000
LENGTH = 24
PARTS = ("text_config", "vision_config", "qformer_config", "audio_config", "decoder_config", "decoder")


def main(words: Sequence[str] | None = None) -> int:
    """Try the families and print what becomes of them, or put that into a file between its marks."""
    parser = argparse.ArgumentParser(
        prog=command("bench.families"),
        description="Tries all causal and image-text families of the installed transformers.",
    )
    parser.add_argument("families", nargs="*", help="model types; all by default")
    parser.add_argument("--into", type=Path, help="the Markdown file that has the table between its marks")
    given = parser.parse_args(words)
    found = {family: outcome(family) for family in shown(given.families or known())}
    text = table(found)
    if given.into:
        before, rest = given.into.read_text().split(MARKS[0])
        given.into.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    else:
        print(text)
    return 0


def shown(families: Sequence[str]) -> Iterator[str]:
    """The same, told as they come."""
    for index, family in enumerate(families):
        print(f"[{index + 1}/{len(families)}] {family}", file=sys.stderr, flush=True)
        yield family


def known() -> list[str]:
    """The model types of causal language models, and those of image-text models."""
    return [*causal(), *image_text()]


def causal() -> list[str]:
    """Those of causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def image_text() -> list[str]:
    """Those that are of image-text models alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() - set(causal()))


def table(found: Mapping[str, str]) -> str:
    """In Markdown, with counts."""
    kinds = {"a causal language model": causal(), "an image-text model alone": image_text()}
    parts = (counted(kind, {name: found[name] for name in names if name in found}) for kind, names in kinds.items())
    return "\n".join(line for part in parts for line in part)


def counted(kind: str, found: Mapping[str, str]) -> list[str]:
    """The lines of those families for which transformers has a model of one `kind`, and how many."""
    import transformers

    if not found:
        return []
    works = sum(said == WORKS for said in found.values())
    others = sum("svdexp compresses causal language models" in said for said in found.values())
    head = (
        f"Of the {len(found)} families for which transformers {transformers.__version__} has {kind} "
        f"{others} are encoders or encoder-decoders; of the other {len(found) - others} {works} work ({WORKS})."
    )
    rows = [f"| {family} | {said} |" for family, said in found.items()]
    return ["", head, "", "| `model_type` | |", "|---|---|", *rows, ""]


def outcome(family: str) -> str:
    """WORKS, or the sentence that a user gets."""
    from svdexp.runtime.errors import UserError

    try:
        with TemporaryDirectory() as folder:
            attempt(family, Path(folder))
    except UserError as error:
        said = str(error).replace(folder, "FOLDER")
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        return WORKS
    return said.strip().splitlines()[0].replace("|", "\\|")[:240]


def attempt(family: str, folder: Path) -> None:
    """Do with a tiny model of the family what users do.

    Raises:
        Exception: what goes wrong.
    """
    import torch

    from svdexp.allocation import Uniform
    from svdexp.checkpoints import checkpoint
    from svdexp.checkpoints.architectures import auto_class
    from svdexp.checkpoints.loading import load_model
    from svdexp.engine.compress import compress
    from svdexp.factorisation import InputMoment
    from svdexp.method import Method
    from svdexp.runtime.errors import require
    from svdexp.schema import ModelConfig
    from svdexp.storage import FactorStorage

    save_dense(family, folder / "dense")
    model = load_model(ModelConfig(family, str(folder / "dense")), torch.float32, torch.device("cpu"))
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    windows = torch.randint(rows, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    method = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    done = compress(model, windows, method, 0.8)
    with torch.no_grad():
        expected = model(windows[:1]).logits
        require(bool(expected.isfinite().all()), "model: the compressed one gives what is not finite")
        checkpoint.save(model, None, folder / "compressed", done.ranks)
        plain: Any = auto_class(model.config).from_pretrained(folder / "compressed", trust_remote_code=True)
        plain.eval()
        for again in (plain, checkpoint.load(folder / "compressed")[0]):
            near = torch.allclose(again(windows[:1]).logits, expected, rtol=1e-3, atol=1e-4)
            require(near, "model: what was saved is another model when it is loaded")
        plain.generate(windows[:1, :8], max_new_tokens=4, do_sample=False)


def save_dense(family: str, folder: Path) -> None:
    """A tiny model with random weights, as a user has one.

    Raises:
        UserError: no tiny one can be made.
    """
    import torch

    from svdexp.checkpoints.architectures import auto_class
    from svdexp.checkpoints.loading import dense_config
    from svdexp.runtime.errors import require
    from svdexp.schema import ModelConfig

    torch.manual_seed(0)
    config = tiny_config(family)
    config.save_pretrained(folder)
    dense_config(ModelConfig(family, str(folder)))
    build: Any = auto_class(config).from_config
    with torch.device("meta"):
        numbers = sum(x.numel() for x in build(config).parameters())
    require(numbers <= MOST, f"no tiny one was tried: with small sizes it still has {numbers:,} parameters")
    build(config).float().save_pretrained(folder)


def tiny_config(family: str) -> Any:
    """Its config with small sizes, those of a text part as well."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return shrunk(CONFIG_MAPPING[family])


def shrunk(kind: type[Any]) -> Any:
    """A config of a class with those of SIZES that it has."""
    default = kind()
    more = MORE.get(default.model_type, {})
    own = {name: size for name, size in SIZES.items() if has(default, name)} | more
    parts = {name: type(getattr(default, name, None)) for name in PARTS}
    if "kv_lora_rank" in own and "num_attention_heads" in own:  # latent attention has heads of one kind
        own["num_key_value_heads"] = own["num_attention_heads"]
    nested = {name: shrunk(part).to_dict() for name, part in parts.items() if hasattr(part, "model_type")}
    return kind(**(nested | more if nested else own))


def has(config: Any, name: str) -> bool:
    """Whether a config has a number that its constructor takes, the same for all blocks."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    try:
        return getattr(config, name, None) is not None
    except Exception:  # of a number that every block has for itself
        return False


if __name__ == "__main__":
    sys.exit(interruptible(main))
