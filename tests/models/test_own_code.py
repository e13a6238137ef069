"""Models with code of their own: compressed, saved and loaded again, here and where svdexp is not."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import load_model
from svdexp.checkpoints.verification import unfilled_memory_shows, verify_checkpoint
from svdexp.engine.compress import compress
from svdexp.export.merge import merge
from svdexp.runtime.errors import UserError
from svdexp.schema import ModelConfig
from tests.support import own_code
from tests.test_compress import WHITENED

# Prints the logits of a folder's model; what it saves goes to a second folder.
STRANGER = """
import sys, torch
sys.modules["svdexp"] = None
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM
tokens = torch.arange(24)[None]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
body = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert torch.equal(body(tokens)[0], model.model(tokens)[0])
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
save_file({"logits": model(tokens).logits, "again": again(tokens).logits}, sys.argv[3])
"""
TOKENS = torch.arange(24)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return own_code.write(tmp_path_factory.mktemp("own") / "twig", tokenizer)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    config = ModelConfig("twig", str(folder), trust_remote_code=True)
    return load_model(config, torch.float32, torch.device("cpu"))


@pytest.fixture
def saved(model: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> Path:
    result = compress(model, windows, WHITENED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    return tmp_path / "checkpoint"


@torch.no_grad()
def test_it_comes_back(saved: Path, model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    assert {"modeling_twig.py", "parts_of_twig.py", "configuration_twig.py"} <= {path.name for path in saved.iterdir()}
    found = verify_checkpoint(saved, model, windows[:1], trust_remote_code=True)
    assert found == {"reload_max_logit_difference": 0}
    with unfilled_memory_shows():
        theirs = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)
    assert torch.equal(theirs(windows).logits, model(windows).logits)
    ours, words = svdexp.load(saved, trust_remote_code=True)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(windows).logits, model(windows).logits)
    ours.save_pretrained(tmp_path / "again")
    words.save_pretrained(tmp_path / "again")
    again, _ = svdexp.load(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(windows).logits, model(windows).logits)


@torch.no_grad()
def test_a_stranger_gets_the_same_model(saved: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    moved = Path(shutil.move(saved, tmp_path / "moved"))  # nothing may lead back to where it was made
    words = [sys.executable, "-c", STRANGER, str(moved), str(tmp_path / "copy"), str(tmp_path / "logits")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    logits = load_file(tmp_path / "logits")
    assert torch.equal(logits["logits"], model(TOKENS).logits)
    assert torch.equal(logits["again"], model(TOKENS).logits)


def test_its_code_runs_only_where_that_is_allowed(saved: Path) -> None:
    with pytest.raises(UserError, match=r"code of its own, modeling_twig\.TwigForCausalLM, .*trust_remote_code"):
        svdexp.load(saved)
    config = json.loads((saved / "config.json").read_text())
    config["svdexp"]["architecture"] = "elsewhere/repository--modeling_twig.TwigForCausalLM"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json is damaged: the architecture is"):
        svdexp.load(saved, trust_remote_code=True)


@torch.no_grad()
def test_a_merged_one_is_of_the_original_class(saved: Path, windows: torch.Tensor, tmp_path: Path) -> None:
    model, _ = svdexp.load(saved, trust_remote_code=True)
    expected = model(windows).logits
    merge(model)
    model.save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / "modeling_svdexp.py").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", trust_remote_code=True)
    assert type(loaded).__name__ == "TwigForCausalLM"
    torch.testing.assert_close(loaded(windows).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_model_without_a_body_comes_back(tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    """Its prefix names no part, so the whole model is its own base model."""
    folder = own_code.write(tmp_path / "trunk", tokenizer)
    code = folder / "modeling_twig.py"
    code.write_text(code.read_text().replace('base_model_prefix = "model"', 'base_model_prefix = "trunk"'))
    model = load_model(ModelConfig("twig", str(folder), trust_remote_code=True), torch.float32, torch.device("cpu"))
    assert model.base_model is model
    result = compress(model, windows, WHITENED, 0.5)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    assert verify_checkpoint(tmp_path / "checkpoint", model, windows[:1], trust_remote_code=True) == {
        "reload_max_logit_difference": 0
    }
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", trust_remote_code=True)
    assert torch.equal(theirs(windows).logits, model(windows).logits)


def test_code_that_does_not_run_is_told_before_calibration(
    tokenizer: Any, windows: torch.Tensor, tmp_path: Path
) -> None:
    folder = own_code.write(tmp_path / "strict", tokenizer)
    code = folder / "modeling_twig.py"
    code.write_text(code.read_text().replace("labels=None, **kwargs", "labels=None"))
    model = load_model(ModelConfig("twig", str(folder), trust_remote_code=True), torch.float32, torch.device("cpu"))
    with pytest.raises(UserError, match=r"TwigForCausalLM does not run on 16 tokens: .*'use_cache'"):
        compress(model, windows, WHITENED, 0.5)
