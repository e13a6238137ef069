"""A model from plain transformers, in training mode or with gradients, is compressed as a loaded one is."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from svdexp.allocation import GlobalLoss, Learned, Sensitivity, Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import Diagonal, InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.modes import at_rest
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, PivotStorage
from svdexp.update import RefitOutput
from tests.conftest import TINY
from tests.support.experts import tiny_experts

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
METHODS = {
    "kron": Method("kron", TwoSided(), GlobalLoss(), PivotStorage()),
    "asvd": replace(WHITENED, weighting=Diagonal(), allocation=Sensitivity(candidates=[0.5], windows=2)),
    "blockwise": replace(WHITENED, traversal=Traversal.blockwise, update=RefitOutput(samples=2)),
    "learned": replace(WHITENED, allocation=Learned(epochs=1)),
}
AROUND = {"nothing": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def stranger(training: bool = False) -> Any:
    """As `from_config` leaves it: every parameter requires a gradient; with dropout in training mode."""
    torch.manual_seed(0)
    config = copy.deepcopy(TINY["gpt2"])
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.5
    return AutoModelForCausalLM.from_config(config).train(training)


def logits(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(windows).logits


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", METHODS)
def test_whatever_modes_a_caller_left_on(name: str, around: str, windows: torch.Tensor) -> None:
    expected = stranger().requires_grad_(False)
    compress(expected, windows, METHODS[name], 0.6)
    model = stranger(training=True)
    with AROUND[around]():
        compress(model, windows + 0, METHODS[name], 0.6)  # tokens that are made in this mode
    assert torch.equal(logits(model, windows), logits(expected, windows))


def test_experts_have_the_flags_of_their_stack(windows: torch.Tensor) -> None:
    model = tiny_experts("gpt_oss").requires_grad_(True)
    first, second = model.model.layers
    second.mlp.experts.requires_grad_(False)
    compress(model, windows, WHITENED, 0.6)
    assert isinstance(first.mlp.experts.down_proj[0], LowRankLinear)
    assert all(parameter.requires_grad for parameter in first.mlp.experts.parameters())
    assert not any(parameter.requires_grad for parameter in second.mlp.experts.parameters())


def test_new_layers_have_the_flags_of_those_they_replace(windows: torch.Tensor) -> None:
    model = stranger(training=True)
    model.transformer.h[0].requires_grad_(False)
    model.transformer.h[1].mlp.eval()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    compress(model, windows, METHODS["kron"], 0.6)
    replaced = 0
    for name, module in model.named_modules():
        if name in modes:
            assert module.training == modes[name], name
    for name, parameter in model.named_parameters():
        old = name if name in before else f"{name.rsplit('.', 2)[0]}.weight"
        replaced += name not in before
        assert parameter.requires_grad == before[old], name
    assert replaced > 20
    assert model.lm_head.weight.requires_grad  # tied to the embedding
    model(windows, labels=windows).loss.backward()


def test_flags_come_back_after_an_error() -> None:
    model = stranger(training=True)

    def fail() -> None:
        with at_rest(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            model.transformer.h[0].mlp.c_fc = LowRankLinear(32, 3, 48, True)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.transformer.h[0].mlp.c_fc.rank_in, nn.Linear)
