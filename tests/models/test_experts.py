"""Mixtures of experts: matrices of their own while the model computes what it did."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, MixtralConfig, PreTrainedModel

import svdexp
from svdexp.allocation import Uniform
from svdexp.checkpoints.checkpoint import label
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.factors import low_rank_layer
from svdexp.models.hooks import input_hooks
from svdexp.models.matrices import layers_of
from svdexp.models.portable import svdexp_experts, svdexp_products
from svdexp.models.portable.svdexp_experts import ExpertList
from svdexp.models.portable.svdexp_pivot import PivotLinear
from svdexp.models.residency import at_hand, running
from svdexp.models.structure import stored_bytes, stored_tensors
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage, PivotStorage, RTNStorage, Storage
from tests.support.experts import EXPERTS, SHAPE, experts_in, tiny_experts
from tests.support.shrunk import truncated
from tests.support.streaming import streamed

FACTORS = FactorStorage()
TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(EXPERTS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def put(model: PreTrainedModel, ranks: dict[str, int], storage: Storage = FACTORS) -> None:
    """Give experts ranks."""
    for matrix in (matrix for matrix in experts_in(model) if matrix.name in ranks):
        W = matrix.weight(model)
        matrix.put(model, storage.layer(truncated(W, ranks[matrix.name]), None, W))


def many_ranks(model: PreTrainedModel, start: int = 2) -> dict[str, int]:
    """Ranks from `start` upwards, so that some are similar and some are not."""
    return {matrix.name: start + index % 11 for index, matrix in enumerate(experts_in(model))}


def test_every_expert_has_its_matrices(name: str) -> None:
    model = tiny_experts(name)
    found = experts_in(model)
    stacks = {key: x for key, x in model.named_parameters() if x.ndim == 3}
    assert {matrix.rivals for matrix in found} == set(stacks)
    assert len(found) == sum(len(stack) for stack in stacks.values())
    for matrix in found:
        stack = stacks[str(matrix.rivals)][int(matrix.name.rpartition(".")[2])]
        W = matrix.weight(model)
        assert torch.equal(W, stack if stack.shape == W.shape else stack.T)


def test_layers_hear_the_tokens_that_chose_them_and_the_model_gives_the_same(name: str) -> None:
    model = tiny_experts(name)
    before = model(TOKENS).logits
    tokens: dict[str, int] = {}
    layers = layers_of(model, experts_in(model))
    with input_hooks(layers, lambda layer, x: tokens.update({layer: tokens.get(layer, 0) + len(x)})):
        heard = model(TOKENS).logits
    torch.testing.assert_close(heard, before)
    chosen = model.config.num_experts_per_tok * TOKENS.numel()
    for stack in {str(matrix.rivals) for matrix in experts_in(model)}:
        assert sum(count for layer, count in tokens.items() if layer.startswith(stack)) == chosen


def test_full_rank_is_the_identity(name: str) -> None:
    model = tiny_experts(name)
    before = model(TOKENS).logits
    for matrix in experts_in(model):
        W = matrix.weight(model)
        matrix.put(model, low_rank_layer(truncated(W, min(W.shape)), None, W))
    assert any(isinstance(part, ExpertList) for part in model.modules())
    torch.testing.assert_close(model(TOKENS).logits, before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("storage", [FACTORS, PivotStorage()], ids=["factors", "pivot"])
@pytest.mark.parametrize("operators", [True, False])
def test_side_by_side_is_what_one_by_one_is(
    name: str, storage: Storage, operators: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without compiled operators."""
    if not operators:
        for module in (svdexp_products, svdexp_experts):
            monkeypatch.setattr(module, "ready", lambda: False)
    model = tiny_experts(name)
    ranks = many_ranks(model)
    del ranks[next(iter(ranks))]  # stays dense
    put(model, ranks, storage)
    grouped = model(TOKENS).logits
    lists = [part for part in model.modules() if isinstance(part, ExpertList)]
    assert sum("groups" in vars(part) for part in lists) == len(lists) - 1
    assert max(len(vars(part).get("groups", ())) for part in lists) > 1
    monkeypatch.setattr(svdexp_experts, "_has_grouped_product", lambda x: False)
    torch.testing.assert_close(model(TOKENS).logits, grouped)


@pytest.mark.parametrize("storage", [FACTORS, PivotStorage()], ids=["factors", "pivot"])
def test_widths_that_no_grouped_product_takes(storage: Storage) -> None:
    """Of 30 and 22 numbers, which are no multiple of 16 bytes."""
    config: Any = MixtralConfig(
        **SHAPE | {"hidden_size": 30, "intermediate_size": 22, "num_attention_heads": 3, "head_dim": 10}
    )
    config.num_key_value_heads, config._experts_implementation = 1, "eager"
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    before, ranks = model(TOKENS).logits, {matrix.name: 15 for matrix in experts_in(model)}
    del ranks[next(iter(ranks))]
    put(model, ranks, storage)
    twin = copy.deepcopy(model).double()
    torch.testing.assert_close(model(TOKENS).logits.double(), twin(TOKENS).logits, atol=1e-5, rtol=1e-4)
    assert not torch.equal(model(TOKENS).logits, before)


def test_few_tokens_go_through_the_layers_of_the_experts_that_they_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits; in float32 grouped products are faster."""
    model = tiny_experts("mixtral")
    put(model, many_ranks(model))
    exact, calls, plain = model(TOKENS).logits, list[object](), svdexp_experts.grouped

    def grouped(*args: Any) -> torch.Tensor:
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(svdexp_experts, "grouped", grouped)
    monkeypatch.setattr(svdexp_experts, "ready", lambda: True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        calls.clear()
        model.to(dtype)
        cache = DynamicCache(config=model.config)
        for index in range(3):
            found = model(TOKENS[:1, index : index + 1], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(found[:, -1].float(), exact[:1, 2], atol=tolerance, rtol=tolerance)
        assert bool(calls) is (dtype == torch.float32)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_is_of_any_tokens(name: str, strict: bool) -> None:
    """Also of those that choose other experts than the tokens by which it was made."""
    model = tiny_experts(name)
    ranks = many_ranks(model)
    del ranks[next(iter(ranks))]  # stays a stack, or in one
    put(model, ranks)
    expected = model(TOKENS[1:]).logits
    graph = torch.export.export(model, (TOKENS[:1],), {"use_cache": False}, strict=strict).module()
    torch.testing.assert_close(graph(TOKENS[1:], use_cache=False).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("storage", [FACTORS, RTNStorage(8, None)], ids=["factors", "codes"])
def test_compiled_by_torch(storage: Storage) -> None:
    model = tiny_experts("qwen3_moe")
    put(model, many_ranks(model), storage)
    expected = model(TOKENS).logits
    compiled = torch.compile(model, backend="aot_eager")
    for tokens, logits in ((TOKENS, expected), (TOKENS[:, :5], expected[:, :5])):
        torch.testing.assert_close(compiled(tokens, use_cache=False).logits, logits, atol=1e-5, rtol=1e-4)


def test_torch_func_has_its_derivatives_and_leaves_the_weights_as_they_were(name: str) -> None:
    model = tiny_experts(name)
    put(model, many_ranks(model))
    model.set_attn_implementation("eager")  # others have no forward derivatives
    before, embedded = model(TOKENS).logits, model.get_input_embeddings()(TOKENS)

    def loss(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(inputs_embeds=x, use_cache=False).logits.square().mean()
        return found

    backward = torch.func.grad(loss)(embedded)
    _, forward = torch.func.jvp(loss, (embedded,), (embedded,))
    torch.testing.assert_close(forward, (backward * embedded).sum(), atol=1e-5, rtol=1e-3)
    twin = embedded.clone().requires_grad_(True)
    torch.testing.assert_close(backward, torch.autograd.grad(loss(twin), twin)[0], atol=1e-6, rtol=1e-3)
    assert torch.equal(model(TOKENS).logits, before)


def test_tensors_of_a_state_dict_lie_in_no_other(name: str) -> None:
    """safetensors takes no views, and accelerate and Trainers save what a state dict gave."""
    model = tiny_experts(name)
    put(model, many_ranks(model), PivotStorage())
    before = model(TOKENS).logits
    state = model.state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert sum(tensor.untyped_storage().nbytes() for tensor in state.values()) == stored_bytes(model)
    torch.testing.assert_close(model(TOKENS).logits, before)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_pivots_side_by_side_are_loaded_as_they_were(name: str, tmp_path: Path) -> None:
    model = tiny_experts(name)
    ranks = many_ranks(model)
    put(model, ranks, PivotStorage())
    before = model(TOKENS).logits
    orders = {name: part.order.clone() for name, part in model.named_modules() if isinstance(part, PivotLinear)}
    label(model, ranks)
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(again(TOKENS).logits, before)
    assert len(orders) == len(ranks)
    assert all(torch.equal(again.get_submodule(name).order, order) for name, order in orders.items())
    torch.testing.assert_close(copy.deepcopy(model)(TOKENS).logits, before)


@pytest.mark.parametrize("step", ["rank_in", None])
def test_a_forward_of_its_own_is_gone_through(step: str | None) -> None:
    """As accelerate gives one to layers whose weights wait elsewhere."""
    model = tiny_experts("mixtral")
    put(model, many_ranks(model))
    layer = experts_in(tiny_experts("mixtral"))[0].layer(model)
    part = layer.get_submodule(step) if step else layer
    before, own = model(TOKENS).logits, part.forward
    part.forward = lambda x: 2 * own(x)
    doubled = model(TOKENS).logits
    del part.forward
    assert torch.equal(model(TOKENS).logits, before)
    layer.rank_out.weight.mul_(2)
    torch.testing.assert_close(model(TOKENS).logits, doubled)
    assert not torch.allclose(doubled, before)


def test_what_is_changed_counts_at_once(name: str) -> None:
    model = tiny_experts(name)
    put(model, many_ranks(model))
    before = model(TOKENS).logits
    matrix = experts_of(model)[0]
    layer = model.get_submodule(matrix)
    layer.rank_out.weight.mul_(2)  # in place: a view
    changed = model(TOKENS).logits
    assert not torch.equal(changed, before)
    layer.rank_out.weight = torch.nn.Parameter(layer.rank_out.weight / 2, requires_grad=False)  # another tensor
    torch.testing.assert_close(model(TOKENS).logits, before)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(TOKENS).logits, before)
    assert twin.double()(TOKENS).logits.dtype == torch.float64


def experts_of(model: PreTrainedModel) -> list[str]:
    """The names of the layers of lists."""
    return [
        f"{name}.{index}"
        for name, part in model.named_modules()
        if isinstance(part, ExpertList)
        for index in range(len(part))
    ]


def test_gradients_reach_the_factors(name: str) -> None:
    model = tiny_experts(name)
    put(model, many_ranks(model))
    model(TOKENS)  # side by side
    layers = [model.get_submodule(layer).requires_grad_(True) for layer in experts_of(model)]
    model(TOKENS).logits.square().sum().backward()
    reached = [layer.rank_in.weight.grad is not None for layer in layers]
    assert sum(reached) > len(reached) / 2


def test_plain_transformers_loads_what_was_saved(name: str, tmp_path: Path) -> None:
    model = tiny_experts(name)
    ranks = many_ranks(model)
    del ranks[next(iter(ranks))]
    put(model, ranks)
    before = model(TOKENS).logits  # side by side: views of one tensor
    size = stored_bytes(model)
    label(model, ranks)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "svdexp_experts.py").is_file()
    torch.testing.assert_close(model(TOKENS).logits, before)
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True), svdexp.load(tmp_path)[0]):
        tensors, expected = stored_tensors(again), stored_tensors(model)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        torch.testing.assert_close(again(TOKENS).logits, before)
        torch.testing.assert_close(pickle.loads(pickle.dumps(again))(TOKENS).logits, before)
    assert stored_bytes(again) == size


def test_a_streamed_mixture_is_compressed_as_a_whole_one(windows: torch.Tensor, tmp_path: Path) -> None:
    whole, model = tiny_experts("gpt_oss"), streamed(tiny_experts("gpt_oss"), tmp_path)
    method = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    compress(whole, windows, method, 0.6)
    compress(model, windows, method, 0.6, cache=Cache(tmp_path / "cache"))
    expected = whole(windows).logits
    for _ in range(2):
        with running(model):
            torch.testing.assert_close(model(windows).logits, expected, rtol=1e-4, atol=1e-4)
        with at_hand(model, "model.layers.0", changes=True), running(model):
            model(windows)  # leaves factors side by side in what is put into the file
