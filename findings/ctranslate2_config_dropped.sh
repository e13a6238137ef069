#!/usr/bin/env bash
# CTranslate2 converts a Gemma 2 without its soft caps and its attention scale, and a Llama of ReLUs as one of SiLUs.
#
# Seen with ctranslate2 4.8.5, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# config.json of the published Gemma 2 models says attn_logit_softcapping 50 and final_logit_softcapping 30, that of the
# 27B also query_pre_attn_scalar 144 with heads of 128. The converter takes none of the three; the one for Gemma 4, in
# the same file, does take final_logit_softcapping. Llama's hidden_act is not looked at either, so that a model which was
# tuned to ReLUs to make its activations sparse runs with SiLUs; OPT's activation is obeyed. No error, no warning.
# What is lost is certain: the logits of the converted model, in float32, are those of transformers once the same
# settings are taken out of its config.
#
# Output seen (largest differences of logits):
#   ctranslate2 4.8.5, transformers 5.23.0
#   config.json                             off by  of logits up to  off by, with the setting taken out in transformers
#   gemma2, none of the three                 0.00            61.59
#   gemma2, attn_logit_softcapping 50         0.57            61.58  0.00
#   gemma2, final_logit_softcapping 30       32.56            29.03  0.00
#   gemma2, query_pre_attn_scalar 18          0.94            61.63  0.00
#   llama, hidden_act silu                    0.00            58.16
#   llama, hidden_act relu                   17.05            56.83  0.00
#   opt, activation_function relu             0.00             9.14
#   opt, activation_function gelu             0.00             9.24
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 5 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet ctranslate2==4.8.5 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import copy
import sys
from importlib.metadata import version

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, OPTConfig, PreTrainedTokenizerFast

folder = sys.argv[1]
WORDS = [f"t{i}" for i in range(64)]
tokens = [(7 * i + 3) % 60 + 3 for i in range(40)]
SHAPE = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1}
GATED = SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2, "eos_token_id": 2, "tie_word_embeddings": False}
GEMMA = GATED | {"head_dim": 16}
PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 16}
OPT = SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64, "eos_token_id": 2}
CASES = {
    "gemma2, none of the three": (Gemma2Config(**GEMMA | PLAIN), {}),
    "gemma2, attn_logit_softcapping 50": (Gemma2Config(**GEMMA | PLAIN | {"attn_logit_softcapping": 50.0}), PLAIN),
    "gemma2, final_logit_softcapping 30": (Gemma2Config(**GEMMA | PLAIN | {"final_logit_softcapping": 30.0}), PLAIN),
    "gemma2, query_pre_attn_scalar 18": (Gemma2Config(**GEMMA | PLAIN | {"query_pre_attn_scalar": 18}), PLAIN),
    "llama, hidden_act silu": (LlamaConfig(**GATED), {}),
    "llama, hidden_act relu": (LlamaConfig(**GATED, hidden_act="relu"), {"hidden_act": "silu"}),
    "opt, activation_function relu": (OPTConfig(**OPT), {}),
    "opt, activation_function gelu": (OPTConfig(**OPT, activation_function="gelu"), {}),
}


def logits(place, config=None):
    """transformers' logits of the folder's model, with another config if one is given."""
    model = AutoModelForCausalLM.from_pretrained(place, config=config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0")
print(f"ctranslate2 {version('ctranslate2')}, transformers {version('transformers')}")
print(f"{'config.json':38}  off by  of logits up to  off by, with the setting taken out in transformers")
found = []
for number, (name, (config, taken_out)) in enumerate(CASES.items()):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=2.0 if "lm_head" in key else 0.3)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    place = f"{folder}/{number}"
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)
    TransformersConverter(place).convert(f"{place}/converted")
    engine = ctranslate2.Generator(f"{place}/converted", device="cpu", compute_type="float32", intra_threads=1)
    got = np.array(engine.forward_batch([[WORDS[token] for token in tokens]]))[0]
    wanted = logits(place)
    off = float(np.abs(got - wanted).max())
    line = f"{name:38}  {off:6.2f}  {np.abs(wanted).max():15.2f}"
    if taken_out:
        without = copy.deepcopy(config)
        for key, value in taken_out.items():
            setattr(without, key, value)
        alike = float(np.abs(got - logits(place, without)).max())
        line += f"  {alike:.2f}"
        found.append(off > 0.05 and alike < 1e-3)
    else:
        found.append(off < 1e-3)
    print(line)
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
