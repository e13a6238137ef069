"""Quantised factors from the command line: kron finds ranks whose 4-bit factors fill a quarter of the 16-bit size."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.end_to_end.conftest import Svdexp, read


@pytest.mark.parametrize("storage", ["rtn_int4", "gptq4"])
def test_main_job(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path, storage: str) -> None:
    """Bytes of the file are the bits that count, and the checkpoint gives the same logits."""
    words = [f"storage={storage}", "method=kron", "ratio=0.25", "eval.efficiency=null", "hydra.run.dir=run"]
    result = svdexp_command(*tiny_job, *words)
    assert result.returncode == 0, result.stderr
    results = read(tmp_path / "run")
    assert 0.24 < results["achieved_ratio"] <= 0.25
    assert results["reload_max_logit_difference"] == 0
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    layers = config["svdexp"]["layers"]
    assert {json.dumps(entry["options"]) for entry in layers.values()} == {'{"code_bits": 4, "group_size": 32}'}
    with safe_open(tmp_path / "run" / "checkpoint" / "model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    codes = sum(8 * size for key, size in sizes.items() if key.endswith(("_codes", "_scale")))
    dense = 16 * 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert len(layers) == 21
    assert codes == pytest.approx(results["achieved_ratio"] * dense)
