#!/usr/bin/env bash
# The model builder of onnxruntime-genai gives an OLMo RMS norms in place of its LayerNorms, and drops clip_qkv.
#
# Seen with onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# OLMo (the first one; OLMo 2 and 3 are another architecture) has LayerNorms without weights: mean taken out, divided by
# the deviation. The builder has a class for it that hands over ones as weights and zeros as biases, but leaves on the
# switch for the norms of Llama, so that the graph has (Skip)SimplifiedLayerNormalization, which takes no mean out and
# has no place for the zeros. The classes for Phi and Nemotron turn the switch off. The epsilon is 1e-6 for 1e-5, and
# clip_qkv (8 in the published OLMo-7B-0424-hf) is not looked at. No error, no warning, in any precision; shown in fp32.
#
# What is lost is certain: "as RMS" compares with a transformers whose OLMo has RMS norms and no clip_qkv. "centred" is
# the very same function for transformers, with the means taken out of the matrices that write to the residual stream
# beforehand; there is no mean left to forget, and the built model is right but for the epsilon.
#
# Output seen (largest differences of logits):
#   onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0
#                     off by  of logits up to  as RMS  norms in the graph
#   llama             0.0000             5.82          SimplifiedLayerNormalization
#   olmo              6.3575             6.55  0.0000  SimplifiedLayerNormalization
#   olmo, centred     0.0004             6.55  0.0000  SimplifiedLayerNormalization
#   olmo, clip_qkv 8  8.0505             6.29  0.0000  SimplifiedLayerNormalization
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 0.5 to 5 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet \
    onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
cat >"$work/try.py" <<'PYTHON'
import contextlib
import io
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig, PreTrainedTokenizerFast
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

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
CASES = {
    "llama": LlamaConfig(**SHAPE),
    "olmo": OlmoConfig(**SHAPE),
    "olmo, centred": OlmoConfig(**SHAPE),
    "olmo, clip_qkv 8": OlmoConfig(**SHAPE, clip_qkv=8.0),
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(136)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")


def written(place, name, config):
    """A model with random weights in a folder, the means taken out of what it writes to its residual stream if asked."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in key or "q_proj" in key else 0.2)
            if name.endswith("centred") and "embed" in key:
                parameter.data -= parameter.data.mean(1, keepdim=True)
            if name.endswith("centred") and ("o_proj" in key or "down_proj" in key):
                parameter.data -= parameter.data.mean(0)
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)


def built(place):
    """The logits of the folder's model as the builder made it, in fp32, and the kinds of norms in its graph."""
    with contextlib.redirect_stdout(io.StringIO()):
        choices = builder.parse_extra_options("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", ["hf_token=false"])
        builder.create_model("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", **choices)
    model = onnxruntime_genai.Model(f"{place}/onnx")
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=128)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(np.array([tokens], dtype=np.int32))
    nodes = onnx.load(f"{place}/onnx/model.onnx", load_external_data=False).graph.node
    kinds = sorted({node.op_type for node in nodes if "LayerNorm" in node.op_type and "Skip" not in node.op_type})
    return generator.get_output("logits")[0], ", ".join(kinds)


def logits(place, **changes):
    """transformers' logits of the folder's model."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **changes).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def without_means(self, x):
    """An RMS norm with the builder's epsilon."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


names = ["onnxruntime-genai", "onnxruntime", "transformers"]
print(", ".join(f"{name} {version(name)}" for name in names))
print(f"{'':16}  off by  of logits up to  as RMS  norms in the graph")
found = []
for number, (name, config) in enumerate(CASES.items()):
    place = f"{folder}/{number}"
    written(place, name, config)
    got, kinds = built(place)
    wanted = logits(place)
    off = float(np.abs(got - wanted).max())
    line = f"{name:16}  {off:6.4f}  {np.abs(wanted).max():15.2f}"
    if "olmo" in name:
        right = OlmoLayerNorm.forward
        OlmoLayerNorm.forward = without_means
        alike = float(np.abs(got - logits(place, clip_qkv=None)).max())
        OlmoLayerNorm.forward = right
        line += f"  {alike:6.4f}  {kinds}"
        found.append(alike < 1e-4 and kinds == "SimplifiedLayerNormalization")
        found.append(off < 0.01 if "centred" in name else off > 0.1)
    else:
        line += f"          {kinds}"
        found.append(off < 1e-4)
    print(line)
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
