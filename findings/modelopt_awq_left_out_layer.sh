#!/usr/bin/env bash
# AWQ by NVIDIA's modelopt with v_proj left out of the quantisation: the exported checkpoint computes something else.
#
# Seen with nvidia-modelopt 0.47.0, transformers 5.14.1, torch 2.13.0 (Python 3.11, CPU).
#
# AWQ divides the columns of a matrix by scales s and has its input multiplied by them. Where several quantised layers
# share an input that a norm computes, export_hf_checkpoint multiplies the norm's weight by s instead, and drops s. It
# looks at the layers with a quantiser alone. One that shares the input and was left out (a pattern with enable: False,
# the usual thing to do with a layer that suffers) is written as it was, bit by bit, behind a norm that now multiplies
# by s: in the checkpoint it multiplies another input than it did. No error, no warning. The quantised model in memory is
# right, so whoever measures before the export sees nothing. A left-out layer behind no norm (down_proj) is right. The
# recipes that come with modelopt leave in_proj_a and in_proj_b of Qwen3.5 out in the same way.
#
# The codes are unpacked here by this script; "mended" divides the columns of the left-out v_proj by s, which shows that
# this is all there is to it. Numbers are relative differences to the logits of the dense model, a tiny random Llama
# with a few large channels.
#
# Output seen:
#   nvidia-modelopt 0.47.0, transformers 5.14.1
#   left out    in memory  exported  mended  left-out matrices as they were, behind a norm as it was
#   nothing          0.33      0.33
#   down_proj        0.30      0.30
#   v_proj           0.31      0.49    0.31  True, False
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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(1))
LAYERS = range(2)


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


def loaded(state):
    """The dense architecture with these numbers."""
    model = copy.deepcopy(dense)
    model.load_state_dict(state)
    return model


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=len(LAYERS), num_attention_heads=4,
    num_key_value_heads=4, eos_token_id=1, bos_token_id=1, tie_word_embeddings=False,
)  # fmt: skip
made = LlamaForCausalLM(config)
for parameter in made.parameters():
    if parameter.ndim == 2:
        torch.nn.init.normal_(parameter, std=0.08)
made.model.embed_tokens.weight.data[:, :4] *= 16
made.save_pretrained(f"{folder}/dense")
dense = AutoModelForCausalLM.from_pretrained(f"{folder}/dense", dtype=torch.float32).eval()
with torch.no_grad():
    wanted = dense(tokens).logits
before = dense.state_dict()

print(f"nvidia-modelopt {version('nvidia-modelopt')}, transformers {version('transformers')}")
print("left out    in memory  exported  mended  left-out matrices as they were, behind a norm as it was")
found = []
for name in (None, "down_proj", "v_proj"):
    recipe = copy.deepcopy(mtq.INT4_AWQ_CFG)
    if name:
        recipe["quant_cfg"].append({"quantizer_name": f"*{name}*", "enable": False})
    model = mtq.quantize(copy.deepcopy(dense), recipe, lambda model: model(tokens))
    memory = off(model, wanted)
    export_hf_checkpoint(model, dtype=torch.float32, export_dir=f"{folder}/{name}")
    state = numbers(load_file(f"{folder}/{name}/model.safetensors"))
    exported = off(loaded(state), wanted)
    line = f"{name or 'nothing':10}  {memory:9.2f}  {exported:8.2f}"
    right = abs(memory - exported) < 0.03
    if name == "v_proj":
        values = [f"model.layers.{i}.self_attn.v_proj.weight" for i in LAYERS]
        norms = [f"model.layers.{i}.input_layernorm.weight" for i in LAYERS]
        bits = all(torch.equal(state[key], before[key]) for key in values)
        same = all(torch.equal(state[key], before[key]) for key in norms)
        mended = state | {v: state[v] / (state[n] / before[n]) for v, n in zip(values, norms)}
        repaired = off(loaded(mended), wanted)
        line += f"  {repaired:6.2f}  {bits}, {same}"
        found += [right, exported > 1.4 * memory, abs(repaired - memory) < 0.03, bits, same]
    else:
        found.append(right)
    print(line)
if found != [True, True, False, True, True, True, False]:
    sys.exit("the behaviour has changed")
PYTHON
"$work/venv/bin/python" "$work/try.py" "$work" >"$work/out" 2>"$work/log" || {
    tail -3 "$work/log" "$work/out"
    exit 1
}
grep -E "^nvidia-modelopt|^left out|^nothing|_proj +[0-9]" "$work/out"
