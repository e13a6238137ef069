"""The last thing that the server of warm.py imports: what every command does first is done once, and nothing is moved.

Hydra finds its plugins, its grammar's tables fill when they first read an override, the choices of conf/ are read, the
compiled operators are loaded, the machine's speed with a tiny model is measured, and objects that are there before a
fork are left out of garbage collection, which would otherwise walk over all of them in each forked process, and copy
the pages that they lie in.
"""

import gc

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from svdexp.cells.choices import GROUPS, own_options
from svdexp.estimate.forecast import this_machine
from svdexp.models.portable.svdexp_operator import ready
from svdexp.models.structure import Targets, find_matrices
from tests.conftest import tiny_model

Plugins.instance()
OverridesParser.create().parse_overrides(
    ["ratio=0.5", "+targets.ranks={model.layers.0.*:null,*.up:7}", "eval.files=[/a/b.txt]", "a='b c'", "~d", "e=1,2"]
)
for group in (*GROUPS.values(), "method/training"):
    own_options(group, "")
threads = torch.get_num_threads()
torch.set_num_threads(1)  # a pool of them would not outlive a fork
ready()
for dtype in (torch.float32, torch.bfloat16):
    this_machine(torch.device("cpu"), dtype, find_matrices(tiny_model("llama_gqa"), Targets()), length=32)
torch.set_num_threads(threads)
gc.collect()
gc.freeze()
gc.enable()
