#!/usr/bin/env bash
# A llama GGUF file that states linear rope scaling is read by transformers as a model without rope scaling.
#
# Seen with transformers 5.23.0, gguf 0.19.0, torch 2.13.0 (Python 3.11, CPU).
#
# GGUF has keys for it (llama.rope.scaling.type and .factor, written here by the gguf package's own methods), llama.cpp
# obeys them, and transformers knows the same scaling as rope_parameters. from_pretrained(gguf_file=...) supports llama,
# takes rope.freq_base from the same family of keys, and leaves the scaling out: no error and no warning (only at the
# level "info", which is off, is there a list of keys that it does not know). The model that comes back has the right
# weights and the wrong positions, so it computes other logits than the folder that the file was made from. A config
# passed along with the file puts it right, which also shows that the file's weights are written as they should be.
#
# Output seen:
#   transformers 5.23.0, gguf 0.19.0
#   the file says     type linear, factor 4.0, freq_base 10000.0
#   safetensors       rope linear, weights equal, logits equal
#   gguf              rope default, weights equal, logits differ by up to 1.54 of 2.02
#   gguf, config told rope linear, weights equal, logits equal
#
# Exits 0 while this is so, 1 when it changes. Removes all it made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6
mkdir "$work/model"
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$work/venv/bin/python" - "$work/model" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
HEADS, LAYERS, WIDTH, INNER, VOCABULARY, CONTEXT, BASE, FACTOR = 4, 2, 64, 96, 64, 128, 10000.0, 4.0


def interleaved(weight):
    """GGUF's order of the rows of llama's queries and keys: the halves of each head in turn, row by row."""
    heads = weight.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
    return np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(WIDTH, WIDTH)


def write(path, model):
    """The model as a GGUF file of architecture llama, its rope scaling by the methods that gguf has for it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(BASE)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(FACTOR)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        turned = interleaved(tensor.numpy()) if "q_proj" in name or "k_proj" in name else tensor.numpy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(turned))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def report(title, model, original):
    """Print how the model differs from the original; its rope type, whether weights are equal, whether logits are."""
    kind = model.config.rope_parameters["rope_type"]
    parameters = dict(model.named_parameters())
    weights = all(torch.equal(value, parameters[name]) for name, value in original.named_parameters())
    tokens = torch.arange(1, 60)[None]
    with torch.no_grad():
        expected = original(tokens).logits
        difference = float((model.eval()(tokens).logits - expected).abs().max())
    logits = "equal" if difference < 1e-4 else f"differ by up to {difference:.2f} of {float(expected.abs().max()):.2f}"
    print(f"{title:17} rope {kind}, weights {'equal' if weights else 'other'}, logits {logits}")
    return kind, weights, difference < 1e-4


folder = sys.argv[1]
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
    rope_parameters={"rope_type": "linear", "factor": FACTOR, "rope_theta": BASE},
)  # fmt: skip
original = LlamaForCausalLM(config).eval()
for parameter in original.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
original.save_pretrained(folder)
write(f"{folder}/tiny.gguf", original)

print(f"transformers {transformers.__version__}, gguf {version('gguf')}")
fields = gguf.GGUFReader(f"{folder}/tiny.gguf").fields
kind, factor, base = (fields[f"llama.rope.{key}"].contents() for key in ("scaling.type", "scaling.factor", "freq_base"))
print(f"the file says     type {kind}, factor {factor}, freq_base {base}")
found = [
    report("safetensors", LlamaForCausalLM.from_pretrained(folder), original),
    report("gguf", LlamaForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf"), original),
    report(
        "gguf, config told", LlamaForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", config=config), original
    ),
]
if found != [("linear", True, True), ("default", True, False), ("linear", True, True)]:
    sys.exit("the behaviour has changed")
PYTHON
