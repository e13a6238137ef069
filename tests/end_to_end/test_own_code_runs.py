"""A model with code of its own from the command line: compressed, measured, exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import svdexp
from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp, read
from tests.end_to_end.test_bad_input import assert_one_sentence
from tests.support import own_code

pytestmark = pytest.mark.any_format

TRUSTED = "model.trust_remote_code=true"


def test_a_run_and_what_follows(
    svdexp_command: Svdexp, tiny_job: list[str], tokenizer: Any, windows: torch.Tensor, tmp_path: Path
) -> None:
    words = [f"model.path={own_code.write(tmp_path / 'twig', tokenizer)}", TRUSTED, "method=svd_llm", "ratio=0.5"]
    words += ["eval.efficiency=null", "precision=float32", "hydra.run.dir=run"]
    run = svdexp_command(*tiny_job, *words)
    assert run.returncode == 0, run.stderr
    results = read(tmp_path / "run")
    assert results["reload_max_logit_difference"] == 0

    job = ["path=run", *(word for word in tiny_job if word.startswith("eval."))]
    job += ["eval.efficiency=null", "precision=float32", "cache=null", "hydra.run.dir=measured"]
    assert_one_sentence(forked.run(tmp_path, job, program="svdexp.evaluate"), "trust_remote_code")
    measured = forked.run(tmp_path, [*job, TRUSTED], program="svdexp.evaluate")
    assert measured.returncode == 0, measured.stderr
    assert read(tmp_path / "measured")["ppl/files"] == results["ppl/files"]

    assert_one_sentence(forked.run(tmp_path, ["path=run", "to=out"], program="svdexp.export"), "trust_remote_code")
    ours, _ = svdexp.load(tmp_path / "run", trust_remote_code=True)
    for form, tolerance in (("hf", 0.0), ("dense", 1e-4)):
        export = ["path=run", f"to={form}", f"format={form}", "trust_remote_code=true"]
        assert forked.run(tmp_path, export, program="svdexp.export").returncode == 0
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / form, trust_remote_code=True)
        torch.testing.assert_close(theirs(windows).logits, ours(windows).logits, rtol=tolerance, atol=tolerance)
