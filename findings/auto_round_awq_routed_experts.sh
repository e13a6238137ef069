#!/usr/bin/env bash
# AWQ by auto-round on a DeepSeek-V3: the routed experts read a norm that was divided by scales they know nothing of.
#
# Seen with auto-round 0.16.1, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# AWQ multiplies the columns of matrices by scales s and divides the norm that all of them read by s. auto-round leaves
# the routed experts of a mixture out of that, by default (skip_moe), and leaves it at taking them off the list of
# matrices: where a shared expert stays on the list, the norm before both is divided by s all the same, and the shared
# expert alone makes up for it. Routed experts and router get another input than before. No error and no warning; the
# model is wrong before a format is chosen. skip_moe=False does not help: routed experts are looked for only where
# nothing else of the block was found. auto-round's table names DeepseekV3ForCausalLM; a mixture without shared experts
# (Qwen3-MoE), where nothing is left on the list for that norm, is right.
#
# "mended" gives AWQConfig the table's mappings by hand but the one of that norm, which shows that this is all there is
# to it. Numbers are relative differences of the logits in float32 to those of the dense model, at 8 bits, where
# rounding alone ("rtn") does little (an expert "as it was" is so up to that rounding); tiny models with random weights
# and a few large channels.
#
# Output seen:
#   auto-round 0.16.1, transformers 5.23.0
#                  rtn     awq  skip_moe=False  mended  after awq: norm, routed expert as it was
#   llama        0.0187  0.0160
#   qwen3_moe    0.0211  0.0221
#   deepseek_v3  0.0453  0.2078          0.2078  0.0444  False, True
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 6 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    auto-round==0.16.1 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from auto_round import AutoRound, AWQConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

folder = sys.argv[1]
SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
DEEPSEEK = {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 16, "head_dim": 32,
}  # fmt: skip
MENDED = [
    {"smooth_layer": r"input_layernorm$", "balance_layers": [r"q_a_proj$", r"kv_a_proj_with_mqa$"]},
    {"smooth_layer": r"q_a_layernorm$", "balance_layers": [r"q_b_proj$"]},
    {"smooth_layer": r"kv_a_layernorm$", "balance_layers": [r"kv_b_proj$"]},
    {"smooth_layer": r"(mlp|shared_experts)\.up_proj$", "balance_layers": [r"(mlp|shared_experts)\.down_proj$"]},
]
CASES = {
    "llama": (SHAPE, {"rtn": "rtn", "awq": AWQConfig()}),
    "qwen3_moe": (SHAPE | EXPERTS | {"num_experts": 4, "head_dim": 16}, {"rtn": "rtn", "awq": AWQConfig()}),
    "deepseek_v3": (
        SHAPE | EXPERTS | DEEPSEEK,
        {"rtn": "rtn", "awq": AWQConfig(), "all": AWQConfig(skip_moe=False), "mended": AWQConfig(mappings=MENDED)},
    ),
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(128)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")
tokens = torch.randint(3, 128, (8, 32), generator=torch.Generator().manual_seed(3))


def loaded(place):
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()


lines = [
    f"auto-round {version('auto-round')}, transformers {version('transformers')}",
    f"{'':11}    rtn     awq  skip_moe=False  mended  after awq: norm, routed expert as it was",
]
found = []
for name, (settings, algorithms) in CASES.items():
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.get_input_embeddings().weight.data[:, :4] *= 8
    place = f"{folder}/{name}"
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)
    dense = loaded(place)
    with torch.no_grad():
        wanted = dense(tokens).logits
    off, line = {}, f"{name:11}"
    for title, algorithm in algorithms.items():
        data = torch.utils.data.DataLoader(tokens, batch_size=1)
        rounder = AutoRound(
            loaded(place), tokenizer, scheme="W8A16", group_size=32, iters=0, nsamples=8, seqlen=32, dataset=data,
            device_map="cpu", amp=False, alg_configs=[algorithm],
        )  # fmt: skip
        model, _ = rounder.quantize()
        with torch.no_grad():
            off[title] = float((model(tokens).logits - wanted).norm() / wanted.norm())
        line += f"{off[title]:{16 if title == 'all' else 8}.4f}"
        if title == "awq" and name == "deepseek_v3":
            now, before = model.model.layers[1], dense.model.layers[1]
            norm = torch.equal(now.post_attention_layernorm.weight, before.post_attention_layernorm.weight)
            expert = before.mlp.experts.gate_up_proj[0, : settings["moe_intermediate_size"]]
            kept = float((now.mlp.experts[0].gate_proj.weight - expert).norm() / expert.norm()) < 0.02
            end = f"  {norm}, {kept}"
            found.append((norm, kept) == (False, True))
    if name == "deepseek_v3":
        line += end
        found.append(min(off["awq"], off["all"]) > 3 * off["rtn"] and off["mended"] < 1.5 * off["rtn"])
    else:
        found.append(off["awq"] < 1.5 * off["rtn"])
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
if grep -E 'WARNING|ERROR' "$work/log" | grep -i -E 'routed|shared|router|layernorm'; then
    echo "the behaviour has changed: it is warned of"
    exit 1
fi
