"""transformers with compressed-tensors, which unpacks the codes: run.py TASK.json RESULT.json."""

import json
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "transformers" / "run.py"))
left = Path(sys.argv[2])
result = json.loads(left.read_text())
left.write_text(json.dumps(result | {"version": version("compressed-tensors")}))
