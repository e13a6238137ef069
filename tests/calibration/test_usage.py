"""Layers that do not work as linear layers stay dense and are named, whatever the method; the others are compressed."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    HrmTextConfig,
    MambaConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Zamba2Config,
)

from svdexp.allocation import GlobalLoss, Learned, Uniform, Whole
from svdexp.calibration.collector import shared_inputs
from svdexp.calibration.dense import collect
from svdexp.calibration.usage import NEVER, NO_DATA, NO_GRADIENT, OTHER, left_dense
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.factors import Factors
from svdexp.models.families import LINEAR
from svdexp.models.hooks import submodules
from svdexp.models.matrices import Matrix
from svdexp.models.structure import Targets, abbreviated, find_matrices, other_stacks, shared_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, GPTQStorage, RTNStorage
from svdexp.training import BlockRefine, Distill
from svdexp.update import IPCA, RefitOutput
from svdexp.update.ipca import Components
from tests.conftest import LLAMA_LIKE, VOCABULARY, tiny_model

SVD_LLM = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
KRON = Method("kron", TwoSided(), GlobalLoss(), FactorStorage())
BRIEF = {"steps": 2, "batch": 2, "check_every": 1}
METHODS = {
    "svd_llm": SVD_LLM,
    "kron": KRON,
    "blockwise": Method("x", InputMoment(), Uniform(), FactorStorage(), traversal=Traversal.blockwise),
    "refit": Method("x", InputMoment(), Uniform(), FactorStorage(), RefitOutput()),
    "ipca": Method("x", None, Uniform(), FactorStorage(), IPCA()),
    "learned": Method("x", None, Learned(epochs=1), FactorStorage(), IPCA(samples=2)),
    "block_refine": Method("x", InputMoment(), Uniform(), FactorStorage(), training={"it": BlockRefine(**BRIEF)}),
    "distill": Method("x", InputMoment(), Uniform(), FactorStorage(), training={"it": Distill(**BRIEF, seq_len=8)}),
    "gptq": Method("x", InputMoment(), Uniform(), GPTQStorage(8, None)),
    "quantise": Method("x", None, Whole(), RTNStorage(8, None)),
    "elastic": SVD_LLM,
}


def mamba() -> PreTrainedModel:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=12)
    return made(config)


def phimoe() -> PreTrainedModel:
    return made(PhimoeConfig(**LLAMA_LIKE, num_key_value_heads=2, num_local_experts=4))


def hrm() -> PreTrainedModel:
    config = HrmTextConfig(**{**LLAMA_LIKE, "num_hidden_layers": 1}, head_dim=8, prefix_lm=False)
    return made(config)


def zamba2() -> PreTrainedModel:
    config = Zamba2Config(
        **{**LLAMA_LIKE, "num_hidden_layers": 4},
        layers_block_type=["mamba", "hybrid"] * 2,
        attention_hidden_size=64,
        attention_head_dim=16,
        mamba_d_state=4,
        mamba_headdim=16,
        mamba_ngroups=1,
        n_mamba_heads=4,
        num_mem_blocks=1,
        adapter_rank=4,
        chunk_size=8,
        use_mem_rope=False,
    )
    return made(config)


def made(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.endswith("A_log"):
                parameter.normal_(0, 0.1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("make", "part"), [(mamba, "dt_proj"), (phimoe, "router")])
def test_every_method_leaves_them_as_they_are(
    name: str, make: Callable[[], PreTrainedModel], part: str, windows: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model, method = make(), METHODS[name]
    before = {key: value.clone() for key, value in model.state_dict().items() if part in key}
    with caplog.at_level(logging.WARNING):
        done = compress(
            model, windows, method, 0.6, targets=Targets(exclude=["*.experts.*"]), elastic=name == "elastic"
        )
    assert sum(part in record.getMessage() for record in caplog.records) == 1
    assert before
    if name != "block_refine":  # which trains all parameters of a block
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any(part in key for key in done.ranks)
    assert 0.5 < done.achieved_ratio <= 0.6  # of the others alone
    assert [part in key for names in done.left_dense.values() for key in names] == [True] * sum(
        key.endswith("weight") for key in before
    )
    assert torch.isfinite(model(windows).logits).all()


@pytest.mark.parametrize("gradients", [False, True])
def test_ordinary_layers_all_work(model: PreTrainedModel, windows: torch.Tensor, gradients: bool) -> None:
    assert left_dense(model, find_matrices(model, Targets()), windows, gradients) == {}


def test_a_cached_run_comes_to_the_same_list(windows: torch.Tensor, tmp_path: Any) -> None:
    first, second = (compress(mamba(), windows, KRON, 0.6, cache=Cache(tmp_path)) for _ in range(2))
    assert first.left_dense == second.left_dense
    assert first.ranks == second.ranks


def test_a_fixed_rank_of_what_stays_dense_anyway_is_no_mistake(windows: torch.Tensor) -> None:
    done = compress(mamba(), windows, SVD_LLM, 0.6, targets=Targets(ranks={"*.dt_proj": None}))
    assert not any("dt_proj" in name for name in done.ranks)


def test_where_nothing_is_left_the_reason_is_said(windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"no layer to compress is left: .*dt_proj.* used by hand"):
        compress(mamba(), windows, SVD_LLM, 0.6, targets=Targets(include=["*.dt_proj"]))


class Experts(nn.Module):
    """Tokens below 8 go to the first expert, others below 16 to the second; no token reaches the third."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for index, part in enumerate(self.parts):
            chosen = tokens // 8 == index
            if chosen.any():
                result[chosen] = part(x[chosen])
        return result


class Mixture(nn.Module):
    """An embedding and one block: experts, a layer under no_grad, and one of which a copy of the weight is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.device = nn.Embedding(24, 4), torch.device("cpu")
        block = nn.ModuleDict({"experts": Experts(), "still": nn.Linear(4, 4)})
        self.blocks = nn.ModuleList([block])
        self.base_model_prefix = ""

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, tokens: torch.Tensor, use_cache: bool = False) -> Any:
        x = self.embedding(tokens)
        block: Any = self.blocks[0]
        with torch.no_grad():
            still = block["still"](x)
        return SimpleNamespace(logits=(x + block["experts"](x, tokens) + still) @ self.embedding.weight.T)


def test_experts_are_waited_for_and_those_without_tokens_named() -> None:
    model: Any = Mixture()
    layers = [Matrix(name, "blocks.0", 4, 4) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    third, still = "blocks.0.experts.parts.2.0", "blocks.0.still"
    windows = torch.tensor([[0, 1, 2], [8, 9, 10], [0, 8, 1]])
    assert left_dense(model, layers, windows, False) == {NO_DATA: [third]}
    assert left_dense(model, layers, windows, True) == {NO_DATA: [third], NO_GRADIENT: [still]}
    assert left_dense(model, layers, windows[:1], False) == {NO_DATA: ["blocks.0.experts.parts.1.0", third]}


class Halved(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class ByHand(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


class Grouped(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[..., :2]


@pytest.mark.parametrize(("kind", "linear"), [(nn.Linear, True), (ByHand, True), (Halved, False), (Grouped, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_subclass_is_known_by_what_it_gives(kind: type[nn.Linear], linear: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = kind(40, 30).to(dtype), torch.randn(2, 5, 40, dtype=dtype)
    assert LINEAR.computes(layer, (x,), layer(x)) is linear
    assert not LINEAR.computes(layer, (), layer(x))
    assert not LINEAR.computes(layer, (x,), (layer(x), None))


def test_early_passes_without_gradients_are_no_obstacle(windows: torch.Tensor) -> None:
    """Six passes a token through L, of which the last has gradients; inputs of all six count."""
    model = hrm()
    layers = find_matrices(model, Targets())
    assert left_dense(model, layers, windows, True) == {}
    found = collect(model, layers, windows[:1], ["gram", "grad_gram"])
    assert all(bool(part["grad_gram"].any()) for part in found.values())


def test_the_other_stack_is_said() -> None:
    assert other_stacks(hrm(), Targets()) == {
        "are beside model.L_module.layers, the one list of blocks that is compressed": ["model.H_module.layers"]
    }
    assert other_stacks(hrm(), Targets(include=["*L_module*"])) == {}
    assert other_stacks(tiny_model("llama"), Targets()) == {}


def test_shared_weights_stay_dense_and_are_named(windows: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = zamba2()
    shared = {name: value.clone() for name, value in model.state_dict().items() if "shared_transformer" in name}
    with caplog.at_level(logging.WARNING):
        done = compress(model, windows, SVD_LLM, 0.6)
    assert "shared_transformer.self_attn.q_proj (2)" in caplog.text
    assert done.ranks
    assert not any("shared_transformer" in name for name in done.ranks)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in shared.items())
    with pytest.raises(UserError, match="share their weights"):
        find_matrices(model, Targets(include=["*shared_transformer*"]))


def test_one_module_under_two_names_is_shared_too(llama: PreTrainedModel) -> None:
    llama.model.layers[2].mlp.up_proj = llama.model.layers[0].mlp.up_proj
    names = ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]
    assert list(shared_matrices(llama, Targets()).values()) == [names]
    assert not {layer.name for layer in find_matrices(llama, Targets())} & set(names)


def test_layers_that_run_twice_share_a_statistic_only_if_all_inputs_are_shared() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    x, y = torch.ones(1, 3), torch.zeros(1, 3)

    def forward() -> None:
        for name, inputs in [("a", x), ("b", x), ("c", x), ("a", y), ("b", y), ("c", x)]:
            model[name](inputs)

    assert shared_inputs(submodules(model, ["a", "b", "c"]), forward) == {"a": "a", "b": "a", "c": "c"}


def test_components_without_any_vector_are_those_of_the_matrix() -> None:
    W = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    for matrix in (W, W.T):
        factors: Factors = Components(matrix, 2, by_energy=False).factors()
        U, S, Vh = torch.linalg.svd(matrix.double())
        torch.testing.assert_close(factors.A @ factors.B, (U[:, :2] * S[:2]) @ Vh[:2])


def test_names_are_abbreviated() -> None:
    assert abbreviated(["a.0.b", "a.1.b", "a.10.c", "d"]) == "a.*.b (2), a.*.c, d"


def test_reasons_differ() -> None:
    assert len({NEVER, NO_DATA, OTHER, NO_GRADIENT}) == 4


def test_a_layer_called_by_keyword_stays_dense_and_crashes_nothing() -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})

    def forward() -> None:
        model["b"](model["a"](input=torch.ones(1, 3)))

    assert shared_inputs(submodules(model, ["a", "b"]), forward) == {"a": "a", "b": "b"}
    assert not LINEAR.computes(model["a"], (), torch.ones(1, 3))
