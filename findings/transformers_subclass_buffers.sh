#!/usr/bin/env bash
# An empty subclass of a transformers model, saved weights loaded into it: buffers hold whatever was in memory.
#
# Seen with transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# `class Mine(FalconH1ForCausalLM)` with an empty body adds nothing, so Mine.from_pretrained(folder) ought to give the
# model that FalconH1ForCausalLM.from_pretrained(folder) gives. Its parameters are the same bits, nothing is reported as
# missing and no warning tells of it, but the non-persistent buffer `mup_vector` of every layer is uninitialised memory:
# whatever was there before, another number at each load, and other logits with it.
#
# What decides is the name of the module that the class was written in. from_pretrained builds the model on the meta
# device, gives non-persistent buffers empty memory and leaves it to _init_weights to fill them. For classes from
# outside the package ("custom code") it passes over every module whose own tensors are all loaded, and a module with
# no tensors of its own counts as such. FalconH1Model is one: it has none, and it fills the mup_vector of its layers. So
# the very same subclass loads right where its __module__ begins with "transformers.", which the last line shows.
#
# Uninitialised memory is made visible by torch's own switch (fill_uninitialized_memory): it holds NaN then.
#
# Output seen:
#   transformers 5.23.0, torch 2.13.0
#   FalconH1ForCausalLM                 parameters equal, missing keys 0, mup_vector filled, logits equal
#   Mine, of __main__                   parameters equal, missing keys 0, mup_vector NaN, logits NaN
#   Mine, of transformers.elsewhere     parameters equal, missing keys 0, mup_vector filled, logits equal
#
# Exits 0 while this is so, 1 when it changes. Removes all it made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/model" <<'PYTHON'
import sys

import torch
import transformers
from transformers import FalconH1Config, FalconH1ForCausalLM

transformers.utils.logging.disable_progress_bar()


class Mine(FalconH1ForCausalLM):
    """Adds nothing."""


def load(folder, cls):
    """The model, and how many keys its loading reports as missing; memory that nobody fills holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        model, report = cls.from_pretrained(folder, output_loading_info=True)
    finally:
        torch.use_deterministic_algorithms(False)
    return model.eval(), len(report["missing_keys"])


def state(found, expected):
    """How what was found compares with what was expected, in a word."""
    if torch.equal(found, expected):
        return "equal"
    return "NaN" if bool(found.isnan().any()) else "other"


def describe(folder, cls, original, tokens):
    """What this class loads from the folder, compared with the model that was saved there."""
    model, missing = load(folder, cls)
    parameters = dict(model.named_parameters())
    equal = all(torch.equal(value, parameters[name]) for name, value in original.named_parameters())
    vectors = [torch.cat([layer.mamba.mup_vector for layer in one.model.layers]) for one in (model, original)]
    with torch.no_grad():
        logits = state(model(tokens).logits, original(tokens).logits)
    vector = {"equal": "filled"}.get(state(*vectors), state(*vectors))
    return f"parameters {'equal' if equal else 'other'}, missing keys {missing}, mup_vector {vector}, logits {logits}"


folder = sys.argv[1]
torch.manual_seed(0)
config = FalconH1Config(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, pad_token_id=0,
    ssm_multipliers=[0.25, 0.5, 2.0, 4.0, 0.5],
)  # fmt: skip
original = FalconH1ForCausalLM(config).eval()
original.save_pretrained(folder)
tokens = torch.arange(1, 17)[None]

print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")
cases = []
for module in (None, "__main__", "transformers.elsewhere"):
    cls = Mine if module else FalconH1ForCausalLM
    if module:
        Mine.__module__ = module
    cases.append(describe(folder, cls, original, tokens))
    print(f"{cls.__name__ + (f', of {module}' if module else ''):35} {cases[-1]}")

right = "parameters equal, missing keys 0, mup_vector filled, logits equal"
wrong = "parameters equal, missing keys 0, mup_vector NaN, logits NaN"
if cases != [right, wrong, right]:
    sys.exit("the behaviour has changed")
PYTHON
