#!/usr/bin/env bash
# A LoRA adapter of a Qwen2-MoE from the days of transformers 4 is loaded without its experts, and nothing says so.
#
# Seen with peft 0.21.2, transformers 4.57.6 (which writes) and 5.23.0 (which reads), torch 2.13.0 (Python 3.11, CPU).
#
# transformers 4 has an nn.Linear for each matrix of each expert, and an adapter has two tensors for each of those.
# transformers 5 stacks experts in 3-D tensors, and peft turns adapters of before into such that fit. It does so for
# Mixtral and for Qwen3-MoE: the adapted model computes what it did. Of a Qwen2-MoE, after which peft calls the very rule
# that it then uses for Qwen3-MoE, PeftModel.from_pretrained takes q_proj and the shared expert and drops the 48 tensors
# of the experts that are routed to. There is no error, no warning, and no missing key; the base model is the same.
#
# The rule is looked up by the model's type in a table that leads from other families to it. Mixtral's own name was
# added to the table, qwen2_moe's was not.
#
# Output seen (the logits' largest differences; experts: tensors of the file that name one, and whether the model that
# was read has parameters beside its stacks for them):
#   peft 0.21.2, written by transformers 4.57.6, read by 5.23.0
#   mixtral    base equal, experts 48 -> adapted, adapted logits equal
#   qwen3_moe  base equal, experts 48 -> adapted, adapted logits equal
#   qwen2_moe  base equal, experts 48 -> left out, adapted logits differ by 0.63 where the adapter moves them by 0.48, without a word
#
# Exits 0 while this is so, 1 when it changes. Removes all it made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4.57.6 5.23.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/python" -m pip install --quiet \
        torch==2.13.0 "transformers==$version" peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
done
cat > "$work/write.py" <<'PYTHON'
"""Tiny models of three families with random weights, an adapter of each, and the logits with and without it."""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
QWEN = SHAPE | {"num_experts": 4, "moe_intermediate_size": 24}
FAMILIES = {
    "mixtral": (MixtralConfig(**SHAPE, num_local_experts=4), ["w1", "w2", "w3"]),
    "qwen3_moe": (Qwen3MoeConfig(**QWEN, head_dim=8), ["gate_proj", "up_proj", "down_proj"]),
    "qwen2_moe": (Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=24), ["gate_proj", "up_proj", "down_proj"]),
}
tokens = torch.arange(32)[None]
for name, (config, experts) in FAMILIES.items():
    folder = Path(sys.argv[1]) / name
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", *experts], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).eval()
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        logits = adapted(tokens).logits
        with adapted.disable_adapter():
            torch.save({"adapted": logits, "base": adapted(tokens).logits}, folder / "logits.pt")
PYTHON
cat > "$work/read.py" <<'PYTHON'
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

transformers.utils.logging.disable_progress_bar()
print(f"peft {version('peft')}, written by transformers {sys.argv[2]}, read by {version('transformers')}")
found = {}
for name in ("mixtral", "qwen3_moe", "qwen2_moe"):
    folder = Path(sys.argv[1]) / name
    wanted = torch.load(folder / "logits.pt")
    tokens = torch.arange(32)[None]
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        same = torch.allclose(model(tokens).logits, wanted["base"], atol=1e-5)
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
        logits = adapted(tokens).logits
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        experts = sum(".experts." in key for key in file.keys())
    there = any(".experts." in key and "lora_" in key for key, _ in adapted.named_parameters())
    off, moved = (float((wanted["adapted"] - x).abs().max()) for x in (logits, wanted["base"]))
    silent = not any("adapter keys" in str(warning.message) for warning in told)
    found[name] = same, experts, there, off < 1e-5, silent
    print(
        f"{name:10s} base {'equal' if same else 'differs'}, experts {experts} -> {'adapted' if there else 'left out'}, "
        + ("adapted logits equal" if off < 1e-5 else f"adapted logits differ by {off:.2f} where the adapter moves them by {moved:.2f}")
        + ("" if there else ", without a word" if silent else ", which is told")
    )
seen = {
    "mixtral": (True, 48, True, True, True),
    "qwen3_moe": (True, 48, True, True, True),
    "qwen2_moe": (True, 48, False, False, True),
}
sys.exit(found != seen)
PYTHON
export HF_HUB_OFFLINE=1
"$work/4.57.6/bin/python" "$work/write.py" "$work" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/5.23.0/bin/python" "$work/read.py" "$work" 4.57.6 2> "$work/log" || { code=$?; cat "$work/log"; exit "$code"; }
