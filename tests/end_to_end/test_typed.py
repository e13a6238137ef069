"""A user's script is checked against our signatures: what is right passes, a misspelt name does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_format

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
import svdexp.compress
import svdexp.evaluate
from svdexp.storage import PivotStorage


def smaller(folder: str, windows: torch.Tensor) -> svdexp.Result:
    result = svdexp.compress(folder, ["one text", "another"], method="kron", ratio=0.6, storage=PivotStorage())
    model: PreTrainedModel = result.model
    share: float = result.achieved_ratio
    print(svdexp.evaluate(model, "pydoc"), share, result.evaluate(texts="pydoc"), result.layers, result.summary())
    again, tokenizer = svdexp.load(result.save("folder"), ratio=0.5)
    print(svdexp.methods(), svdexp.read(["runs"]), svdexp.__version__)
    return svdexp.compress(again, windows, "svd_llm", 0.5, allocation={"rank_align": 8})
"""


def checked(*scripts: Path) -> str:
    """What mypy, strict, says of them; it has the options and the cache of `make types`."""
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), *map(str, scripts)]
    done = subprocess.run(words, env=os.environ | {"MYPYPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True)
    return done.stdout


def test_a_typed_script_passes_and_a_misspelt_one_does_not(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SCRIPT)
    wrong.write_text(SCRIPT.replace("method=", "methd=").replace("svdexp.read", "svdexp.raed"))
    said = checked(right, wrong)
    assert "errors in 1 file (checked 2 source files)" in said, said
    assert "right.py" not in said, said
    assert "methd" in said
    assert "raed" in said
