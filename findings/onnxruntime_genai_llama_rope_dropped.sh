#!/usr/bin/env bash
# The model builder of onnxruntime-genai drops the rope scaling of a Llama, linear or yarn, that it obeys in a Mistral.
#
# Seen with onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# The builder's base class knows the scalings linear and yarn and raises for any other. Its class for Llama has a method of
# the same name that knows llama3 alone and does not hand on to the base, so that any other scaling of a LlamaForCausalLM
# (as of DeepSeek-Coder, Vicuna 16k, Yarn-Llama-2) is built as none, without an error or a warning, and a scaling that
# the builder cannot do is not refused either. Nemotron and SmolLM3 are built by classes made from Llama's.
#
# A Llama and a Mistral without a window compute the same, and here they have the same weights and the same
# rope_parameters; all that differs is the family's name in config.json. "as none" compares with transformers after the
# scaling is taken out of the config.
#
# Output seen (largest differences of logits):
#   onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0
#   rope scaling  family    off by  as none  of logits up to
#   default       mistral   0.0000   0.0000             5.82
#   default       llama     0.0000   0.0000             5.82
#   llama3        llama     0.0000   9.1893             5.58
#   linear        mistral   0.0000   8.5707             5.46
#   linear        llama     8.5707   0.0000             5.46
#   yarn          mistral   0.0000   8.7583             6.06
#   yarn          llama     8.7582   0.0000             6.06
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 5 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx-ir==1.1.0 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import contextlib
import io
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

# The builder is made to be run as `python -m onnxruntime_genai.models.builder`; it looks for its own modules beside it.
sys.path.insert(0, str(Path(onnxruntime_genai.__file__).parent / "models"))
import builder

folder = sys.argv[1]
tokens = [(7 * i * i + 3 * i + 5) % 120 + 3 for i in range(64)]
SHAPE = {
    "vocab_size": 136,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES = {"mistral": (MistralConfig, {"sliding_window": None}), "llama": (LlamaConfig, {})}
OLD = {"original_max_position_embeddings": 64}
SCALINGS = {
    "default": {},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | OLD,
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0, "truncate": False} | OLD,
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(136)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")


def written(place, config):
    """A model with random weights in a folder, the same for both families."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in key or "q_proj" in key else 0.2)
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)


def built(place):
    """The logits of the folder's model as the builder made it, in fp32."""
    with contextlib.redirect_stdout(io.StringIO()):
        choices = builder.parse_extra_options("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", ["hf_token=false"])
        builder.create_model("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", **choices)
    model = onnxruntime_genai.Model(f"{place}/onnx")
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=128)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(np.array([tokens], dtype=np.int32))
    return generator.get_output("logits")[0]


def logits(place, **changes):
    """transformers' logits of the folder's model, its config changed if asked."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **changes).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


names = ["onnxruntime-genai", "onnxruntime", "transformers"]
print(", ".join(f"{name} {version(name)}" for name in names))
print("rope scaling  family    off by  as none  of logits up to")
found = []
for scaling, more in SCALINGS.items():
    for family, (kind, also) in FAMILIES.items():
        if (scaling, family) == ("llama3", "mistral"):
            continue
        place = f"{folder}/{family}-{scaling}"
        rope = {"rope_type": scaling, "rope_theta": 10000.0} | more
        written(place, kind(**SHAPE, **also, rope_parameters=rope))
        got = built(place)
        wanted = logits(place)
        plain = logits(place, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
        off, alike = (float(np.abs(got - other).max()) for other in (wanted, plain))
        print(f"{scaling:12}  {family:8}  {off:6.4f}  {alike:7.4f}  {np.abs(wanted).max():15.2f}")
        dropped = family == "llama" and scaling in {"linear", "yarn"}
        found.append(alike < 1e-4 and off > 0.1 if dropped else off < 1e-4)
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
