"""The last thing that the server of warm.py imports: what every command does first is done once, and nothing is moved.

Hydra finds its plugins, its grammar's tables fill when they first read an override, and objects that are there before a
fork are left out of garbage collection, which would otherwise walk over all of them in each forked process, and copy
the pages that they lie in.
"""

import gc

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

Plugins.instance()
OverridesParser.create().parse_overrides(
    ["ratio=0.5", "+targets.ranks={model.layers.0.*:null,*.up:7}", "eval.files=[/a/b.txt]", "a='b c'", "~d", "e=1,2"]
)
gc.collect()
gc.freeze()
gc.enable()
