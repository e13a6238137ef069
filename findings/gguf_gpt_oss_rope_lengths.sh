#!/usr/bin/env bash
# transformers reads the rope scaling of a gpt-oss GGUF file as the lengths of the keys' names.
#
# Seen with transformers 5.23.0, gguf 0.19.0, numpy 2.3.5 (Python 3.11, CPU).
#
# A file that states yarn with factor 32 over 4096 positions (the numbers of the published gpt-oss models, written here
# by the gguf package's own methods) comes back with factor 27 and 44 positions: "gpt-oss.rope.scaling.factor" has 27
# characters and "gpt-oss.rope.scaling.original_context_length" has 44. The type comes back as an array that holds 25,
# the length of "gpt-oss.rope.scaling.type". A field of gguf's reader keeps all its parts in file order, the length of
# the key first and the value last, and the code for gpt-oss takes the first. Keys of other kinds (the vocabulary's size
# here) are read through another path and come back right, and gguf's own field.contents() gives the true values.
#
# numpy hides it: in 2.3.5 float() of an array of one number only warns that this is deprecated, in a category that
# Python does not print for library code. With 2.4.6 the same call raises a TypeError about 0-dimensional arrays, so
# there such a file is not read wrongly but not at all. Hence the older numpy.
#
# Output seen:
#   transformers 5.23.0, gguf 0.19.0, numpy 2.3.5
#                                        gguf reads  transformers reads  characters in the key
#   vocab_size                                   64                  64                     18
#   rope.scaling.type                          yarn                [25]                     25
#   rope.scaling.factor                        32.0                27.0                     27
#   rope.scaling.original_context_length       4096                  44                     44
#
# Exits 0 while this is so, 1 when it changes. Removes all it made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.3.5
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/tiny.gguf" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

path = sys.argv[1]
writer = gguf.GGUFWriter(path, "gpt-oss")
writer.add_name("tiny")
writer.add_vocab_size(64)
writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
writer.add_rope_scaling_factor(32.0)
writer.add_rope_scaling_orig_ctx_len(4096)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

fields = gguf.GGUFReader(path).fields
config = load_gguf_checkpoint(path)["config"]
scaling = config["rope_scaling"]
rows = {
    "vocab_size": config["vocab_size"],
    "rope.scaling.type": scaling["rope_type"],
    "rope.scaling.factor": scaling["factor"],
    "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
}
print(f"transformers {transformers.__version__}, gguf {version('gguf')}, numpy {numpy.__version__}")
print(f"{'':36} {'gguf reads':>10}  {'transformers reads':>18}  {'characters in the key':>21}")
for key, read in rows.items():
    true = fields[f"gpt-oss.{key}"].contents()
    print(f"{key:36} {true!s:>10}  {read!s:>18}  {len(f'gpt-oss.{key}'):21}")

right = [fields[f"gpt-oss.{key}"].contents() for key in rows] == [64, "yarn", 32.0, 4096]
lengths = [len(f"gpt-oss.{key}") for key in rows][1:]
if not right or rows["vocab_size"] != 64 or [int(read) for read in map(numpy.max, list(rows.values())[1:])] != lengths:
    sys.exit("the behaviour has changed")
PYTHON
