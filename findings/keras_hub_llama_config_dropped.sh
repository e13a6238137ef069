#!/usr/bin/env bash
# KerasHub reads a Llama 3 folder without its rms_norm_eps, its biases, and the rope scaling that transformers 5 wrote.
#
# Seen with keras-hub 0.32.0, keras 3.15.1 (torch backend), transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# from_preset takes a folder of transformers for a preset. Of a LlamaForCausalLM's config.json
#   - rope_parameters, which transformers 5 writes, is read for rope_theta alone. The scaling in it, that of every Llama
#     3.1 and 3.2, is not: the same numbers under rope_scaling, as transformers 4 wrote them, are obeyed. With that key a
#     scaling that KerasHub does not have is refused, too; with the new one it is dropped.
#   - rms_norm_eps is not read; 1e-6 is used where all Llama 3 say 1e-5. Mistral's and Qwen's converters do read theirs.
#   - attention_bias is not read, and the biases in the file are passed over.
# No error, no warning. "read so" compares with transformers after the same is taken out of the model.
#
# Output seen (largest differences of logits):
#   keras-hub 0.32.0, keras 3.15.1, transformers 5.23.0
#   config.json                 off by  read so  of logits up to
#   none of these               0.0000   0.0000             6.28
#   llama3 in rope_parameters   8.0376   0.0000             6.39
#   llama3 in rope_scaling      0.0000   0.0000             6.39
#   linear in rope_parameters   7.8523   0.0000             6.00
#   linear in rope_scaling      ValueError: The config should be a valid llama3 config.
#   rms_norm_eps 1e-5           1.4196   0.0000             6.29
#   attention_bias              5.5687   0.0000             6.24
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 1 to 6 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    keras-hub==0.32.0 keras==3.15.1 tensorflow-text==2.21.1 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 KERAS_BACKEND=torch TF_CPP_MIN_LOG_LEVEL=3
cat >"$work/try.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import keras_hub
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

folder = Path(sys.argv[1])
tokens = [(7 * i * i + 3 * i + 5) % 120 + 3 for i in range(96)]
SHAPE = {
    "vocab_size": 136,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}
# What config.json says, whether its rope is put as transformers 4 did, and what KerasHub takes the model for.
CASES = {
    "none of these": ({}, False, {}),
    "llama3 in rope_parameters": ({"rope_parameters": LLAMA3}, False, {"rope_parameters": PLAIN}),
    "llama3 in rope_scaling": ({"rope_parameters": LLAMA3}, True, {}),
    "linear in rope_parameters": ({"rope_parameters": LINEAR}, False, {"rope_parameters": PLAIN}),
    "linear in rope_scaling": ({"rope_parameters": LINEAR}, True, None),
    "rms_norm_eps 1e-5": ({"rms_norm_eps": 1e-5}, False, {"rms_norm_eps": 1e-6}),
    "attention_bias": ({"attention_bias": True}, False, {"attention_bias": False}),
}


def written(place, config, old):
    """A model with random weights in a folder, its embeddings as large as a fresh Llama's."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02 if "embed" in key else 1.0 if "q_proj" in key else 0.2)
        elif "bias" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(place)
    if old:
        path = place / "config.json"
        about = json.loads(path.read_text())
        scaling = about.pop("rope_parameters")
        about["rope_theta"] = scaling.pop("rope_theta")
        path.write_text(json.dumps(about | {"rope_scaling": scaling}))


def loaded(place):
    """The logits of the folder's model in KerasHub."""
    backbone = keras_hub.models.Backbone.from_preset(str(place), dtype="float32")
    with torch.no_grad():
        hidden = backbone({"token_ids": np.array([tokens]), "padding_mask": np.ones((1, len(tokens)))})
        return backbone.token_embedding(hidden, reverse=True)[0].numpy()


def logits(place, **changes):
    """transformers' logits of the folder's model, its config changed if asked."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **changes).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


print(", ".join(f"{name} {version(name)}" for name in ["keras-hub", "keras", "transformers"]))
print(f"{'config.json':26}  off by  read so  of logits up to")
found = []
for number, (name, (said, old, taken)) in enumerate(CASES.items()):
    place = folder / str(number)
    written(place, LlamaConfig(**SHAPE | {"rope_parameters": PLAIN} | said), old)
    wanted = logits(place)
    try:
        got = loaded(place)
    except ValueError as error:
        print(f"{name:26}  {type(error).__name__}: {error}")
        found.append(taken is None)
        continue
    found.append(taken is not None)
    off, alike = (float(np.abs(got - other).max()) for other in (wanted, logits(place, **taken or {})))
    print(f"{name:26}  {off:6.4f}  {alike:7.4f}  {np.abs(wanted).max():15.2f}")
    found.append(alike < 1e-4 and (off > 0.01) == bool(taken))
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
