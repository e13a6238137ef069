"""Who looks ahead, and whose blocks run alone: transformers' own architectures, with weights and on shapes alone."""

import logging
from collections import UserDict
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BigBirdConfig,
    CTRLConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    HrmTextConfig,
    LlamaConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    XLMConfig,
    XLNetConfig,
)

from svdexp.allocation import GlobalLoss, Uniform
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.behaviour import _find_fault, looks_ahead, require_next_token, why_not_replayed
from svdexp.models.path import Pass
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, GPTQStorage
from svdexp.training import BlockRefine
from svdexp.update import IPCA, RefitOutput
from tests.conftest import LLAMA_LIKE, TINY, VOCABULARY

GEMMA = {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 8}
BIDIRECTIONAL: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**LLAMA_LIKE),
    "big_bird": BigBirdConfig(**LLAMA_LIKE, attention_type="original_full"),
    "gemma3": Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True),
    "llama": LlamaConfig(**LLAMA_LIKE, is_causal=False),
}
CAUSAL: dict[str, PretrainedConfig] = {
    **TINY,
    "bert": BertConfig(**LLAMA_LIKE, is_decoder=True),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "ctrl": CTRLConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, dff=48),
    "openai": OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
BY_WEIGHTS_ONLY: dict[str, PretrainedConfig] = {
    "xlm": XLMConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=4),
    "xlnet": XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48),
}
OTHERS_KEYS = Gemma3nTextConfig(
    **{**GEMMA, "num_hidden_layers": 4},
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=8,
    num_kv_shared_layers=2,
    laurel_rank=4,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention"] * 2,
    activation_sparsity_pattern=[0.0] * 4,
)
LOOPED = HrmTextConfig(**{**LLAMA_LIKE, "num_hidden_layers": 2}, head_dim=8, prefix_lm=False)
METHOD = Method("some", InputMoment(), Uniform(), FactorStorage())


def made(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return made(config)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_models_that_look_ahead_are_refused(name: str) -> None:
    for model in (made(BIDIRECTIONAL[name]), skeleton(BIDIRECTIONAL[name])):
        for refuse in (require_next_token, lambda model: plan(model, METHOD, 0.8, Targets())):
            with pytest.raises(UserError, match="looks at later tokens"):
                refuse(model)


@pytest.mark.parametrize("name", BY_WEIGHTS_ONLY)
def test_what_no_attribute_says_is_seen_in_gradients(name: str) -> None:
    assert looks_ahead(made(BY_WEIGHTS_ONLY[name]))


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_pass_and_their_blocks_run_alone(name: str) -> None:
    for model in (made(CAUSAL[name]), skeleton(CAUSAL[name])):
        require_next_token(model)
        assert why_not_replayed(model) is None


def test_no_parameter_keeps_a_gradient_or_loses_its_wish_for_one() -> None:
    model = made(CAUSAL["llama"]).requires_grad_(True)
    looks_ahead(model)
    why_not_replayed(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "reason"),
    [(OTHERS_KEYS, "model.layers.0 is given per_layer_input"), (LOOPED, "L_module.layers.0 runs 6 times")],
    ids=["per-layer inputs", "loop"],
)
def test_blocks_that_do_not_run_alone(config: PretrainedConfig, reason: str) -> None:
    for model in (made(config), skeleton(config)):
        assert reason in str(why_not_replayed(model))


def passes(**arguments: Any) -> list[Pass]:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    return [Pass("0", a, {}, b, None), Pass("1", b, arguments, c, None)]


def test_what_blocks_share_in_a_mapping_is_found() -> None:
    keys = {"full": (torch.ones(2), torch.ones(2, requires_grad=True))}
    assert _find_fault(passes(mask=torch.ones(2), shared=UserDict({"full": (torch.ones(2),)})), ["0", "1"]) is None
    assert _find_fault(passes(shared=UserDict(keys)), ["0", "1"]) == "1 is given shared, which depends on the text"


def test_what_happens_between_blocks_and_their_order_are_found() -> None:
    first, second = passes()
    assert "another order" in str(_find_fault([second, first], ["0", "1"]))
    moved = Pass("1", first.output + 1, {}, second.output, None)
    assert "1 is given something else than 0 gives" in str(_find_fault([first, moved], ["0", "1"]))
    assert _find_fault([first, Pass("1", first.output.clone(), {}, second.output, None)], ["0", "1"]) is None


@pytest.mark.parametrize(
    ("parts", "knob"),
    [
        ({"traversal": Traversal.blockwise}, r"method\.traversal=blockwise .* use method\.traversal=dense"),
        ({"update": RefitOutput()}, r"method\.update=RefitOutput"),
        ({"weighting": None, "update": IPCA()}, r"method\.update=IPCA"),
        ({"storage": GPTQStorage()}, r"storage=GPTQStorage"),
        ({"training": {"block_refine": BlockRefine()}}, r"method\.training\.block_refine"),
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [OTHERS_KEYS, LOOPED], ids=["per-layer inputs", "loop"])
def test_every_part_that_goes_block_by_block_is_refused_before_calibration(
    parts: dict[str, Any], knob: str, config: PretrainedConfig, windows: torch.Tensor, tmp_path: Any
) -> None:
    method = Method(**{**vars(METHOD), **parts})
    with pytest.raises(UserError, match=knob) as refusal:
        compress(made(config), windows, method, 0.8, cache=Cache(tmp_path))
    assert not list(tmp_path.iterdir())
    assert "traversal" in parts or "traversal" not in str(refusal.value)
    with pytest.raises(UserError, match=knob):
        plan(skeleton(config), method, 0.8, Targets())


def test_a_model_that_does_not_run_on_shapes_alone_passes_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """A mixture in float32, of which torch would log a traceback."""
    config = MixtralConfig(**{**LLAMA_LIKE, "num_hidden_layers": 1}, num_key_value_heads=2, num_local_experts=3)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)
    try:
        assert why_not_replayed(skeleton(config)) is None
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_what_goes_through_the_whole_model_is_not_refused() -> None:
    for method in (METHOD, Method("kron", TwoSided(), GlobalLoss(), FactorStorage())):
        plan(made(OTHERS_KEYS), method, 0.8, Targets())


class ForwardOnly(torch.autograd.Function):
    """As a kernel without a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def test_where_no_gradient_can_be_had_attributes_are_believed() -> None:
    for configs, ahead in ((BIDIRECTIONAL, True), (CAUSAL, False)):
        model = made(configs["gemma3"])
        model.lm_head.register_forward_hook(lambda module, args, output: ForwardOnly.apply(output))
        assert looks_ahead(model) is ahead
