#!/usr/bin/env bash
# The LoRA that mergekit extracts of a tuned Qwen2 has the biases' changes in its file, and peft drops them silently.
#
# Seen with mergekit 0.1.5, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# mergekit-extract-lora takes a tuned model and its base, factorises the differences, and writes an adapter for peft.
# q_proj, k_proj and v_proj of Qwen2 (and 2.5) have biases; how those changed it writes, too, as lora_B.bias, the name
# that peft has for a bias of an adapter. But peft has such biases only where adapter_config.json says lora_bias: true,
# which mergekit does not write, and what a file has beyond the adapter's own parameters PeftModel.from_pretrained passes
# over. Neither program says a word. Here the rank is full, so the adapted model ought to be the tuned one: a Llama,
# without biases, is, and so is the Qwen2 once the line is added to adapter_config.json by hand, so the file is right
# (peft then warns of the layers that have no bias).
#
# Output seen (largest differences of logits from the tuned model's: those of the base alone, and with the adapter):
#   mergekit 0.1.5, peft 0.21.2, transformers 5.23.0
#                            tuning  adapter is off by  lora_B.bias in the file  read  peft warns
#   llama                      5.20               0.00                        0     0  no
#   qwen2                      4.09               0.85                        6     0  no
#   qwen2, lora_bias added     4.09               0.00                        6     6  yes
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 5 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    mergekit==0.1.5 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/write.py" <<'PYTHON'
"""Tiny models with random weights, and each again with all its numbers moved, as tuning would."""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "tie_word_embeddings": False,
}
for name, config in {"llama": LlamaConfig(**SHAPE), "qwen2": Qwen2Config(**SHAPE)}.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for tuned in (False, True):
        for parameter in model.parameters():
            parameter.data += (0.05 if tuned else 0.2) * torch.randn_like(parameter)
        model.save_pretrained(f"{sys.argv[1]}/{name}/{'tuned' if tuned else 'base'}")
PYTHON
cat >"$work/read.py" <<'PYTHON'
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

tokens = torch.arange(32)[None]
print(", ".join(f"{name} {version(name)}" for name in ("mergekit", "peft", "transformers")))
print(f"{'':24} tuning  adapter is off by  lora_B.bias in the file  read  peft warns")


def row(name, title):
    """Print one line: what tuning changed, how far the adapted base is from the tuned model, and which biases are there."""
    folder = Path(sys.argv[1]) / name
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder / kind).eval() for kind in ("base", "tuned"))
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wanted = tuned(tokens).logits
        moved = float((base(tokens).logits - wanted).abs().max())
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
        away = float((adapted(tokens).logits - wanted).abs().max())
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        written = sum(key.endswith("lora_B.bias") for key in file.keys())
    read = sum("lora_B" in key and key.endswith(".bias") and bool(value.any()) for key, value in adapted.named_parameters())
    words = any("adapter keys" in str(warning.message) or "bias" in str(warning.message) for warning in told)
    distance = "0.00" if away < 1e-4 else f"{away:.2f}"
    print(f"{title:24} {moved:6.2f}  {distance:>17}  {written:23}  {read:4}  {'yes' if words else 'no'}")
    return away < 1e-4, away > 0.1 * moved, written, read, words


found = [row("llama", "llama"), row("qwen2", "qwen2")]
place = Path(sys.argv[1]) / "qwen2" / "adapter" / "adapter_config.json"
place.write_text(json.dumps(json.loads(place.read_text()) | {"lora_bias": True}))
found.append(row("qwen2", "qwen2, lora_bias added"))
if found != [(True, False, 0, 0, False), (False, True, 6, 0, False), (True, False, 6, 6, True)]:
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
(
    "$work/venv/bin/python" "$work/write.py" "$work"
    for name in llama qwen2; do
        "$work/venv/bin/mergekit-extract-lora" --max-rank 64 \
            --base-model "$work/$name/base" --model "$work/$name/tuned" --out-path "$work/$name/adapter"
    done
) >"$work/log" 2>&1 || {
    tail -3 "$work/log"
    exit 1
}
if grep -i bias "$work/log"; then
    echo "the behaviour has changed: mergekit says something of biases"
    exit 1
fi
"$work/venv/bin/python" "$work/read.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
