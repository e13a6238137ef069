#!/usr/bin/env bash
# Yarn as onnxruntime-genai's model builder makes it: other frequencies and another scale than transformers'.
#
# Seen with onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0, torch 2.13.0 (Python 3.11, CPU).
#
# Yarn's ramp between frequencies that are kept and such that are divided begins and ends at dimensions that are rounded
# to integers, unless the config says truncate: false, as gpt-oss does. The builder never rounds and does not look at
# truncate, so that gpt-oss is right and everyone else is off, by up to 7 % of a frequency here. attention_factor, the
# scale of cosines and sines that a config may state, is not read; the one of the paper is used. beta_fast and beta_slow
# have defaults (32 and 1) that configs leave out, as the lines do that Qwen2.5's and Qwen3's cards tell one to add; the
# builder takes zeros and ends in a ZeroDivisionError. The numbers are those of Qwen2.5: base 1000000, factor 4 over 32768
# positions. "read so" compares with transformers, its config changed to what the builder takes it for.
#
# Output seen (largest differences of logits):
#   onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0
#   rope_parameters beside factor               off by  read so  of logits up to
#   betas, truncate false                       0.0007   0.0007            10.35
#   betas                                       7.2071   0.0007            10.34
#   betas, truncate false, attention_factor 1   6.3449   0.0007            10.29
#   nothing more                                ZeroDivisionError
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
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

# The builder is made to be run as `python -m onnxruntime_genai.models.builder`; it looks for its own modules beside it.
sys.path.insert(0, str(Path(onnxruntime_genai.__file__).parent / "models"))
import builder

folder = sys.argv[1]
tokens = [(7 * i * i + 3 * i + i // 120 + 5) % 120 + 3 for i in range(512)]
SHAPE = {
    "vocab_size": 136,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
WHOLE = {"truncate": False}
CASES = {
    "betas, truncate false": (BETAS | WHOLE, BETAS | WHOLE),
    "betas": (BETAS, BETAS | WHOLE),
    "betas, truncate false, attention_factor 1": (BETAS | WHOLE | {"attention_factor": 1.0}, BETAS | WHOLE),
    "nothing more": ({}, None),
}
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(136)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0", pad_token="t0")


def written(place, config):
    """A model with random weights in a folder."""
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
    settings.set_search_options(max_length=600)
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
print(f"{'rope_parameters beside factor':42}  off by  read so  of logits up to")
found = []
for number, (name, (more, taken)) in enumerate(CASES.items()):
    place = f"{folder}/{number}"
    written(place, Qwen2Config(**SHAPE, rope_parameters=YARN | more))
    wanted = logits(place)
    if taken is None:
        try:
            built(place)
            error = "built"
        except ArithmeticError as caught:
            error = type(caught).__name__
        print(f"{name:42}  {error}")
        found.append(error == "ZeroDivisionError" and np.isfinite(wanted).all())
        continue
    got = built(place)
    off, alike = (float(np.abs(got - other).max()) for other in (wanted, logits(place, rope_parameters=YARN | taken)))
    print(f"{name:42}  {off:6.4f}  {alike:7.4f}  {np.abs(wanted).max():15.2f}")
    found.append(alike < 0.01 and (off > 0.1) == (more != taken))
if not all(found):
    sys.exit(f"the behaviour has changed: {found}")
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/try.py" "$work" 2>"$work/log" || {
    tail -3 "$work/log"
    exit 1
}
