#!/usr/bin/env bash
# A Qwen3.5 or Qwen3-Next in AWQ by NVIDIA's modelopt: the norms in the exported checkpoint are wrong.
#
# Seen with nvidia-modelopt 0.47.0, transformers 5.14.1, torch 2.13.0 (Python 3.11, CPU).
#
# AWQ divides the columns of a matrix by scales s and has its input multiplied by them; export_hf_checkpoint puts that
# into the norm before. The norms of these two families multiply by 1 + w, so the new w has to be (1 + w) s - 1. The file
# has w s. modelopt knows such norms by the names of their classes, and has those of Gemma 1 to 3, which come out right
# (as does Llama, whose norms multiply by w), but not Qwen3_5RMSNorm and Qwen3NextRMSNorm. No error, no warning, and the
# quantised model in memory is right, so whoever measures before the export sees nothing.
#
# The codes are unpacked here by this script; "mended" puts (1 + w) s - 1 into the norms, which shows that this is all
# there is to it. Numbers are relative differences to the logits of the dense model, a tiny random one with a few large
# channels and full attention.
#
# Output seen:
#   nvidia-modelopt 0.47.0, transformers 5.14.1
#                in memory  exported  mended
#   llama             0.33      0.33
#   gemma3            0.15      0.15
#   qwen3_5           0.31      0.49    0.32
#   qwen3_next        0.31      0.49    0.32
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 6 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    nvidia-modelopt==0.47.0 transformers==5.14.1 accelerate==1.15.0 numpy==2.4.6 requests==2.34.2
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import copy
import sys
from importlib.metadata import version

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3_5TextConfig, Qwen3NextConfig

folder = sys.argv[1]
tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(1))
LAYERS = 2
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "tie_word_embeddings": False,
}
FULL = {"layer_types": ["full_attention"] * LAYERS}
DENSE = {"mlp_only_layers": list(range(LAYERS)), "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=32),
    "qwen3_5": Qwen3_5TextConfig(**SHAPE, **FULL),
    "qwen3_next": Qwen3NextConfig(**SHAPE, **FULL, **DENSE),
}


def off(model, wanted):
    """How far the model's logits are from those wanted, relative."""
    with torch.no_grad():
        return float((model(tokens).logits - wanted).norm() / wanted.norm())


def numbers(file):
    """The file's matrices as numbers: codes of four bits, two rows in a byte, times steps, times what an input is."""
    unpacked = {}
    for name, tensor in file.items():
        if tensor.dtype == torch.uint8:
            codes = torch.stack([tensor & 15, tensor >> 4], 1).flatten(0, 1).to(torch.int8)
            codes = torch.where(codes > 7, codes - 16, codes)
            tensor = codes * file[f"{name}_scale"].repeat_interleave(128, 1)
            tensor = tensor * file.get(name.replace("weight", "pre_quant_scale"), 1)
        if not name.endswith("_scale"):
            unpacked[name] = tensor
    return unpacked


def loaded(dense, state):
    """The dense architecture with these numbers."""
    model = copy.deepcopy(dense)
    model.load_state_dict(state)
    return model


print(f"nvidia-modelopt {version('nvidia-modelopt')}, transformers {version('transformers')}")
print("             in memory  exported  mended")
found = {}
for name, config in FAMILIES.items():
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.08)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.get_input_embeddings().weight.data[:, :4] *= 16
    made.save_pretrained(f"{folder}/{name}")
    dense = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = dense(tokens).logits
    before = dense.state_dict()
    model = mtq.quantize(copy.deepcopy(dense), mtq.INT4_AWQ_CFG, lambda model: model(tokens))
    memory = off(model, wanted)
    export_hf_checkpoint(model, dtype=torch.float32, export_dir=f"{folder}/{name}-awq")
    state = numbers(load_file(f"{folder}/{name}-awq/model.safetensors"))
    exported = off(loaded(dense, state), wanted)
    line = f"{name:10}  {memory:10.2f}  {exported:8.2f}"
    found[name] = abs(exported - memory) < 0.03
    if "qwen" in name:
        scaled = [key for key in state if "layernorm" in key and not torch.equal(state[key], before[key])]
        mended = state | {key: (1 + before[key]) * state[key] / before[key] - 1 for key in scaled}
        repaired = off(loaded(dense, mended), wanted)
        line += f"  {repaired:6.2f}"
        found[name] = (len(scaled), exported > 1.4 * memory, abs(repaired - memory) < 0.03)
    print(line)
wrong = (2 * LAYERS, True, True)
if found != {"llama": True, "gemma3": True, "qwen3_5": wrong, "qwen3_next": wrong}:
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
"$work/venv/bin/python" "$work/try.py" "$work" >"$work/out" 2>"$work/log" || {
    tail -3 "$work/log" "$work/out"
    exit 1
}
grep -E "^nvidia-modelopt|^ +in memory|^(llama|gemma3|qwen3_5|qwen3_next) " "$work/out"
