#!/usr/bin/env bash
# SmoothQuant by llm-compressor changes what Gemma 2 and 3, GLM-4-MoE and Qwen3.5-MoE compute, before anything is quantised.
#
# Seen with llmcompressor 0.14.0.1, compressed-tensors 0.19.0, transformers 5.17.0, torch 2.13.0 (Python 3.11, CPU).
#
# SmoothQuant divides what a norm puts out by scales s and multiplies the columns of the matrices behind it by s: by
# itself, with no quantisation in the recipe, the model has to stay what it was. SmoothQuantModifier has a table that
# says which matrices are behind which norm. The first three of these architectures stand in it with Llama's entry.
#   - The norm before gate_proj and up_proj of Gemma 2 and 3 is called pre_feedforward_layernorm. Their
#     post_attention_layernorm, Llama's name for that place, works on the output of the attention, and its result goes
#     into the residual stream. It is divided by s, and the matrices are multiplied by s all the same.
#   - Of GLM-4-MoE the table has the experts, but not the router, which reads the same norm and then gets what was
#     divided by s: tokens are weighted, or sent to experts, otherwise. (For Qwen3-MoE and Mixtral the table leaves
#     that norm out.)
#   - Qwen3.5-MoE has an entry of its own, which has the shared expert behind that norm and nothing else. Both the
#     router and all routed experts then read what was divided by s.
# No error and no warning of it, and the quantised model that is written inherits it. "mended" gives the modifier its
# mappings by hand: the right norm for the Gemmas, the attention alone for the mixtures.
#
# Numbers are relative differences of the logits in float32 to those of the model before, tiny ones with random
# weights and a few large channels.
#
# Output seen:
#   llmcompressor 0.14.0.1, transformers 5.17.0
#                   smoothed  mended
#   llama              0.0000
#   qwen3_moe          0.0000
#   gemma              0.0000
#   gemma2             0.4240  0.0000
#   gemma3_text        0.4329  0.0000
#   glm4_moe           0.0851  0.0000
#   qwen3_5_moe_text   0.6668  0.0000
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 6 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    llmcompressor==0.14.0.1 compressed-tensors==0.19.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.core import reset_session
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

folder = sys.argv[1]
SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 2}
GLM = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
QWEN = EXPERTS | {
    "num_experts": 4, "shared_expert_intermediate_size": 48, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
ATTENTION = [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]
GEMMA = [ATTENTION, [["re:.*gate_proj", "re:.*up_proj"], "re:.*pre_feedforward_layernorm"]]
CASES = {
    "llama": ({}, None),
    "qwen3_moe": (EXPERTS | {"num_experts": 4}, None),
    "gemma": ({}, None),
    "gemma2": ({}, GEMMA),
    "gemma3_text": ({}, GEMMA),
    "glm4_moe": (GLM, [ATTENTION]),
    "qwen3_5_moe_text": (QWEN, [[ATTENTION[0], "re:.*layers.1.input_layernorm"]]),
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(128)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")
tokens = torch.randint(3, 128, (8, 32), generator=torch.Generator().manual_seed(3))
texts = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})


def off(place, **options):
    """How far smoothing, with nothing quantised, moves the folder's model's logits, relative."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        before = model(tokens).logits
    reset_session()
    recipe = [SmoothQuantModifier(smoothing_strength=0.5, **options)]
    oneshot(
        model=model, processor=tokenizer, dataset=texts, recipe=recipe, num_calibration_samples=8, max_seq_length=32,
        log_dir=None,
    )  # fmt: skip
    with torch.no_grad():
        return float((model(tokens).logits - before).norm() / before.norm())


lines = [f"llmcompressor {version('llmcompressor')}, transformers {version('transformers')}", f"{'':16} smoothed  mended"]
found = []
for name, (settings, mappings) in CASES.items():
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHAPE | settings))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.get_input_embeddings().weight.data[:, :4] *= 8
    place = f"{folder}/{name}"
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)
    smoothed = off(place)
    line = f"{name:16} {smoothed:8.4f}"
    if mappings:
        mended = off(place, mappings=mappings)
        line += f"  {mended:6.4f}"
        found.append(smoothed > 0.02 and mended < 1e-4)
    else:
        found.append(smoothed < 1e-4)
    lines.append(line)
with open(f"{folder}/found", "w") as file:
    file.write("\n".join(lines) + "\n")
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
(cd "$work" && "$work/venv/bin/python" "$work/try.py" "$work") >"$work/log" 2>&1 || {
    tail -3 "$work/log"
    exit 1
}
cat "$work/found"
if grep -E 'WARNING|ERROR' "$work/log" | grep -i -E 'smooth|norm|mapping'; then
    echo "the behaviour has changed: it is warned of"
    exit 1
fi
