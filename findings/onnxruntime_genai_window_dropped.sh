#!/usr/bin/env bash
# onnxruntime-genai's model builder drops the sliding window of a Mistral or Phi-3; the built model ends in an error, too.
#
# Seen with onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# The builder asks layer_types of the config which layers have the window. Mistral's and Phi-3's configs have no such
# list: their window (4096 in Mistral-7B-v0.1, 2047 in Phi-3-mini-4k) holds for all layers. So the graph has no window in
# any layer, without a word, while genai_config.json has the window with an empty list of layers. The same release's
# runtime takes an empty list for all layers and gives them caches hardly larger than the window. Once a text is longer
# than the window the logits are those of a model without one, and once it is longer than the cache the run ends in a
# RuntimeError about shapes. Built with windowed_kv_cache=false there is no error, and no window either. "no window"
# compares with transformers after the window is taken out of the config.
#
# Qwen2 has layer_types and comes out right with the same window in all its layers, and so does the Phi-3 when
# layer_types is added to its config.json by hand.
#
# Output seen (window 16, a text of 64 tokens, 8 at once and then one by one; largest differences of logits):
#   onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0
#                                     layers said  off by  no window  tokens
#   qwen2                             [0, 1]       0.0000                 64
#   mistral                           []           5.3913     0.0000      32 RuntimeError
#   mistral, windowed_kv_cache=false  none         8.1087     0.0000      64
#   phi3                              []           5.0545     0.0000      32 RuntimeError
#   phi3, windowed_kv_cache=false     none         6.4672     0.0000      64
#   phi3, layer_types added           [0, 1]       0.0000                 64
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
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, MistralConfig, Phi3Config, PreTrainedTokenizerFast, Qwen2Config

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
WINDOW = {"sliding_window": 16}
MISTRAL = MistralConfig(**SHAPE, **WINDOW)
PHI3 = Phi3Config(**SHAPE, **WINDOW, original_max_position_embeddings=256)
QWEN2 = Qwen2Config(**SHAPE, **WINDOW, use_sliding_window=True, max_window_layers=0)
EVERY = {"layer_types": ["sliding_attention"] * 2}
FULL = ["windowed_kv_cache=false"]
# Configs, what is added to config.json by hand, options of the builder, and what ought to come of it.
CASES = {
    "qwen2": (QWEN2, {}, [], "right"),
    "mistral": (MISTRAL, {}, [], "fails"),
    "mistral, windowed_kv_cache=false": (MISTRAL, {}, FULL, "no window"),
    "phi3": (PHI3, {}, [], "fails"),
    "phi3, windowed_kv_cache=false": (PHI3, {}, FULL, "no window"),
    "phi3, layer_types added": (PHI3, EVERY, [], "right"),
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(136)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")


def written(place, config, more):
    """A model with random weights in a folder, something added to its config.json."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in key or "q_proj" in key else 0.2)
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)
    path = Path(place) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def built(place, options):
    """The folder's model as the builder made it, in fp32, and the layers that it says have the window."""
    options = ["hf_token=false", *options]
    with contextlib.redirect_stdout(io.StringIO()):
        choices = builder.parse_extra_options("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", options)
        builder.create_model("", place, f"{place}/onnx", "fp32", "cpu", f"{place}/cache", **choices)
    about = json.loads(Path(f"{place}/onnx/genai_config.json").read_text())["model"]["decoder"]
    return onnxruntime_genai.Model(f"{place}/onnx"), about.get("sliding_window", {}).get("layers", "none")


def run(model):
    """The logits of the tokens, the first eight at once and then one by one, as far as onnxruntime-genai gets."""
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=128)
    generator = onnxruntime_genai.Generator(model, settings)
    rows, error = [], ""
    try:
        for part in (tokens[:8], *([token] for token in tokens[8:])):
            generator.append_tokens(np.array([part], dtype=np.int32))
            rows.append(generator.get_output("logits")[0])
    except RuntimeError as caught:
        error = type(caught).__name__
    return np.concatenate(rows), error


def logits(place, **changes):
    """transformers' logits of the folder's model, its config changed if asked."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **changes).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


names = ["onnxruntime-genai", "onnxruntime", "transformers"]
print(", ".join(f"{name} {version(name)}" for name in names))
print(f"{'':32}  layers said  off by  no window  tokens")
found = []
for number, (name, (config, more, options, ought)) in enumerate(CASES.items()):
    place = f"{folder}/{number}"
    written(place, config, more)
    model, layers = built(place, options)
    got, error = run(model)
    off = float(np.abs(got - logits(place)[: len(got)]).max())
    line = f"{name:32}  {layers!s:11}  {off:6.4f}"
    if ought == "right":
        line += f"  {'':9}"
        found.append(off < 1e-4)
    else:
        alike = float(np.abs(got - logits(place, sliding_window=None)[: len(got)]).max())
        line += f"  {alike:9.4f}"
        found.append(alike < 1e-4 and off > 0.1)
    print(f"{line}  {len(got):6} {error}".rstrip())
    found.append((len(got) < len(tokens)) == bool(error) == (ought == "fails"))
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
