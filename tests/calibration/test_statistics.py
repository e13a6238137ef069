"""Statistics against a direct float64 computation from recorded inputs."""

import copy
from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Uniform
from svdexp.calibration import STATISTICS, BlockwiseStatistics, DenseStatistics
from svdexp.calibration.collector import first_not_finite, shared_inputs
from svdexp.calibration.dense import collect, smallest_model
from svdexp.calibration.statistics import BLOCK, Gram, add_in_block_rows, clipped, pack, unpack
from svdexp.checkpoints.checkpoint import unlabel
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.hooks import call_hooks, input_hooks, submodules
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache, Shelf
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage
from tests.conftest import overflow_at, tiny_model
from tests.support.shrunk import truncated


def recorded_moments(model: PreTrainedModel, names: list[str], windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[x xᵀ] of each layer by itself, from every input it sees, in float64."""
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.no_grad(), input_hooks(submodules(model, names), lambda name, x: inputs[name].append(x.flatten(0, -2))):
        model(windows, use_cache=False)
    stacked = {name: torch.cat(parts).double() for name, parts in inputs.items()}
    return {name: x.T @ x / len(x) for name, x in stacked.items()}


def test_gram_of_many_small_batches_equals_one_and_float64() -> None:
    x = torch.randn(500, BLOCK + 40, generator=torch.Generator().manual_seed(0))
    whole, parts = Gram(x.shape[1], x.device), Gram(x.shape[1], x.device)
    whole.add(x)
    for piece in x.split(7):
        parts.add(piece)
    expected = x.double().T @ x.double() / len(x)
    torch.testing.assert_close(whole.result().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.result().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(whole.result(), whole.result().T)


def test_block_rows_are_what_a_cpu_adds_up() -> None:
    """Beside a CPU the sum goes in block rows: here on the CPU, as no other device need be there."""
    x = torch.randn(50, 2 * BLOCK + 40, generator=torch.Generator().manual_seed(0))
    here, beside = Gram(x.shape[1], x.device), Gram(x.shape[1], x.device)
    here.add(x)
    add_in_block_rows(beside.total, x)
    beside.count = len(x)
    torch.testing.assert_close(here.result(), beside.result())


def test_gram_without_tokens_is_zero() -> None:
    empty = Gram(3, torch.device("cpu"))
    empty.add(torch.zeros(0, 3))
    assert not empty.result().any()


def test_shared_statistics_equal_separate_ones(model: PreTrainedModel, windows: torch.Tensor) -> None:
    layers = find_matrices(model, Targets())
    found = collect(model, layers, windows, ["gram"])
    expected = recorded_moments(model, [layer.name for layer in layers], windows)
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(found[name]["gram"].double(), moment, rtol=1e-4, atol=1e-5)


def test_layers_fed_by_one_tensor_share_one_statistic(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    names = [layer.name for layer in find_matrices(llama, Targets())]
    leaders = shared_inputs(submodules(llama, names), lambda: llama(windows[:1]))
    block = {name.rpartition(".")[2]: leader.rpartition(".")[2] for name, leader in leaders.items() if ".1." in name}
    assert block == {
        "q_proj": "q_proj",
        "k_proj": "q_proj",
        "v_proj": "q_proj",
        "o_proj": "o_proj",
        "gate_proj": "gate_proj",
        "up_proj": "gate_proj",
        "down_proj": "down_proj",
    }


def test_pack_keeps_shared_tensors_once() -> None:
    shared, own = torch.ones(2), torch.zeros(3)
    packed = pack({"q": shared, "k": shared, "o": own})
    assert packed.keys() == {"q,k", "o"}
    assert {name: tensor.tolist() for name, tensor in unpack(packed).items()} == {
        "q": [1, 1],
        "k": [1, 1],
        "o": [0, 0, 0],
    }


def test_only_missing_statistics_are_collected(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, shelf = find_matrices(llama, Targets()), Shelf()
    first = DenseStatistics(llama, layers, windows, {"gram": shelf}).statistics("model.layers.1")
    passes: list[object] = []
    monkeypatch.setattr(llama.model, "forward", lambda *args, **kwargs: passes.append(args))
    again = DenseStatistics(llama, layers, windows, {"gram": shelf}).statistics("model.layers.1")
    assert not passes
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name]["gram"], again[name]["gram"]) for name in first)


def test_statistics_that_vanish_are_not_collected_from_a_half_compressed_model(
    llama: PreTrainedModel, windows: torch.Tensor
) -> None:
    layers = find_matrices(llama, Targets())
    source = DenseStatistics(llama, layers, windows, {"gram": Shelf()})
    dense, W = layers[3].layer(llama), layers[3].weight(llama)
    layers[3].put(llama, FactorStorage().layer(truncated(W, 2), None, W))
    with pytest.raises(UserError, match="statistics vanished"):
        source.statistics("model.layers.0")
    layers[3].put(llama, dense)
    assert source.statistics("model.layers.0")


def test_the_head_runs_only_where_it_is_compressed() -> None:
    model = tiny_model("llama")
    layers = find_matrices(model, Targets(lm_head=True))
    assert smallest_model(model, layers) is model
    assert smallest_model(model, layers[:-1]) is model.base_model


def test_blockwise_inputs_come_from_the_compressed_blocks(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """Statistics of each block equal those recorded from whole forward passes of the model as it then is."""
    layers = find_matrices(model, Targets())
    source = BlockwiseStatistics(model, layers, windows, ["gram"])
    for group in dict.fromkeys(layer.group for layer in layers):
        names = [layer.name for layer in layers if layer.group == group]
        expected = recorded_moments(model, names, windows)
        found = source.statistics(group)
        for name in names:
            torch.testing.assert_close(found[name]["gram"].double(), expected[name], rtol=1e-4, atol=1e-5)
        compressed = Method("one", InputMoment(), Uniform(), FactorStorage())
        compress(model, windows, compressed, 0.5, targets=Targets(include=[f"{group}.*"]))
        unlabel(model)  # a model that is compressed already is refused


def test_a_block_is_left_once_its_inputs_are_known(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """What comes behind a layer runs in the first window alone, and where it has to be brought to the next block."""
    layers = find_matrices(llama, Targets())
    source = BlockwiseStatistics(llama, layers, windows, ["gram"])
    source.sharing("model.layers.0")  # which brings the windows there, and looks who shares an input
    ran: Counter[str] = Counter()
    block = {x.name: x.layer(llama) for x in layers if x.group == "model.layers.0"}
    with call_hooks(block, lambda name, args, kwargs: ran.update([name.rpartition(".")[2]])):
        found = source.statistics("model.layers.0", ["model.layers.0.self_attn.o_proj"])
        assert ran["q_proj"] == ran["o_proj"] == len(windows)
        assert ran["down_proj"] == ran["gate_proj"] == 1
        source.leave("model.layers.0")
        assert ran["down_proj"] == len(windows) + 1
    assert found["model.layers.0.self_attn.o_proj"]["gram"].isfinite().all()
    source.statistics("model.layers.1")
    for group in ("model.layers.1", "model.layers.2"):
        source.leave(group)  # behind the last one there is none
    assert source.path.waiting == ["model.layers.2"]


def test_blockwise_and_dense_agree_on_the_first_block_only(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    outcome = {}
    for traversal in Traversal:
        torch.manual_seed(0)
        model = tiny_model("llama_gqa")
        method = Method("x", InputMoment(), Uniform(), FactorStorage(), traversal=traversal)
        compress(model, windows, method, 0.5, cache=Cache())
        outcome[traversal] = dict(model.named_parameters())
    dense, blockwise = outcome[Traversal.dense], outcome[Traversal.blockwise]
    first = "model.layers.0.self_attn.q_proj.rank_in.weight"
    last = "model.layers.2.mlp.down_proj.rank_in.weight"
    torch.testing.assert_close(dense[first].abs(), blockwise[first].abs(), rtol=1e-2, atol=1e-3)
    assert not torch.allclose(dense[last].abs(), blockwise[last].abs(), rtol=1e-2, atol=1e-3)


def test_a_non_finite_activation_names_layer_and_window(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    token = int(windows[4, 3])
    assert token not in windows[:4]
    overflow_at(llama, token)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj .* window [34]"):
        collect(llama, find_matrices(llama, Targets()), windows, ["gram"])


def test_sums_that_overflow_are_of_finite_numbers() -> None:
    values = torch.full((3, 2, 4), 3e38)
    assert first_not_finite(values) is None
    values[1, 1, 2], values[2, 0, 0] = torch.inf, -torch.inf
    assert first_not_finite(values) == 1
    assert first_not_finite(values[2]) == 0
    assert first_not_finite(values[0]) is None


def gradients_of(model: PreTrainedModel, names: list[str], windows: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """E[g gᵀ] and the mean squared weight gradient of single windows, by autograd on the parameters, in float64."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    fisher = {name: torch.zeros_like(LINEAR.weight(model.get_submodule(name))) for name in names}
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name in names:
        keep = outputs[name].append
        model.get_submodule(name).register_forward_hook(
            lambda module, args, y, keep=keep: (y.retain_grad(), keep(y))[0]
        )
    for window in windows:
        model.zero_grad()
        logits = model(window[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").backward()
        for name in names:
            module = model.get_submodule(name)
            gradient = module.weight.grad
            fisher[name] += (gradient if isinstance(module, torch.nn.Linear) else gradient.T).detach() ** 2
    result = {}
    for name in names:
        g = torch.cat([y.grad.flatten(0, -2) for y in outputs[name]])
        W = LINEAR.weight(model.get_submodule(name)).detach()
        G = g.T @ g / len(g)
        result[name] = {
            "grad_gram": G,
            "input_grad_gram": W.T @ G @ W,
            "fisher": fisher[name].detach() / len(windows),
        }
        g = torch.stack([token for y in outputs[name] for token in in_bounds(y.grad.flatten(0, -2)[3:21])])
        result[name]["clipped_grad_gram"] = g.T @ g / len(g)
    return result


def in_bounds(gradients: torch.Tensor) -> list[torch.Tensor]:
    """Of one window, each token's (m,), scaled where it is not within 0.1 … 10 times the mean length."""
    mean = sum(float(g.norm()) for g in gradients) / len(gradients)
    return [g * min(max(float(g.norm()), 0.1 * mean), 10 * mean) / float(g.norm()) for g in gradients]


def test_gradients_are_clipped_at_both_ends_and_zeros_left_out() -> None:
    """In each window by itself."""
    g = torch.tensor([[[1.0, 0], [0, 100], [0.01, 0], [0, 0]], [[3.0, 4], [3, 4], [3, 4], [3, 4]]])
    mean = 101.01 / 3
    expected = torch.tensor([[[0.1 * mean, 0], [0, 100], [0.1 * mean, 0], [0, 0]], [[3.0, 4]] * 4])
    torch.testing.assert_close(clipped(g), expected)
    many = torch.ones(1, 50, 1)
    many[0, 0] = 1000
    torch.testing.assert_close(clipped(many)[0, :2, 0], torch.tensor([10 * 1049 / 50, 0.1 * 1049 / 50]))
    assert not clipped(torch.zeros(2, 3, 4)).any()


def test_gradient_statistics_equal_autograd(model: PreTrainedModel, windows: torch.Tensor) -> None:
    layers = find_matrices(model, Targets())
    needs = ["grad_gram", "input_grad_gram", "clipped_grad_gram", "fisher", "gram"]
    found = collect(model, layers, windows, needs)
    expected = gradients_of(model, [layer.name for layer in layers], windows)
    plain = collect(model, layers, windows, ["gram"])
    for name, statistics in expected.items():
        for key, value in statistics.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name][key].double(), value, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(found[name]["gram"], plain[name]["gram"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_statistic_keeps_the_graph_of_a_backward_pass_alive(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """Else every window's activations would stay in memory until the end."""
    results = collect(llama, find_matrices(llama, Targets()), windows, STATISTICS)
    assert not any(tensor.requires_grad for statistics in results.values() for tensor in statistics.values())


def test_gradients_need_no_trainable_parameters_and_leave_flags_alone(
    llama: PreTrainedModel, windows: torch.Tensor
) -> None:
    llama.requires_grad_(True)
    collect(llama, find_matrices(llama, Targets()), windows, ["grad_gram"])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in llama.parameters())


def test_output_moments_are_what_weights_see_of_inputs(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """Without bias, alone and in a backward pass."""
    layers = find_matrices(model, Targets())
    expected = recorded_moments(model, [layer.name for layer in layers], windows)
    for needs in (["output_gram"], ["output_gram", "grad_gram"]):
        found = collect(model, layers, windows, needs)
        for layer in layers:
            W = layer.weight(model).double()
            moment = W @ expected[layer.name] @ W.T
            scale = float(moment.abs().max())
            torch.testing.assert_close(found[layer.name]["output_gram"].double(), moment, rtol=1e-4, atol=1e-5 * scale)


def test_a_large_bias_costs_an_output_moment_no_digits(windows: torch.Tensor) -> None:
    """In 16 bits, outputs with such a bias would be rounded to more than they are without."""
    model = tiny_model("qwen2").bfloat16()
    (layer,) = find_matrices(model, Targets(include=["*.0.*.k_proj"]))
    plain = collect(model, [layer], windows, ["output_gram"])[layer.name]["output_gram"]
    bias = layer.bias(model)
    assert bias is not None
    bias += 1000
    torch.testing.assert_close(collect(model, [layer], windows, ["output_gram"])[layer.name]["output_gram"], plain)


def test_every_layer_gets_what_it_needs_and_no_more(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """The layer that stands for a shared input need not want anything of it itself."""
    layers = [layer for layer in find_matrices(llama, Targets()) if layer.group == "model.layers.1"]
    short = {layer.name.rpartition(".")[2]: layer.name for layer in layers}
    needs: dict[str, tuple[str, ...]] = dict.fromkeys((layer.name for layer in layers), ())
    needs[short["k_proj"]] = ("gram", "grad_gram")
    needs[short["v_proj"]] = ("gram", "output_gram")
    needs[short["up_proj"]] = ("input_grad_gram",)
    found, whole = collect(llama, layers, windows, needs), collect(llama, layers, windows, STATISTICS)
    assert {name: tuple(statistics) for name, statistics in found.items()} == needs
    assert found[short["k_proj"]]["gram"] is found[short["v_proj"]]["gram"]
    for name, statistics in found.items():
        for need, value in statistics.items():
            torch.testing.assert_close(value, whole[name][need])


def test_shelves_hold_what_is_needed_of_each_layer(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, first = find_matrices(llama, Targets()), "model.layers.0.mlp.up_proj"
    needs = {layer.name: ("gram", "abs_max") if layer.name == first else ("gram",) for layer in layers}
    shelves = {"gram": Shelf(), "abs_max": Shelf()}
    source = DenseStatistics(llama, layers, windows, shelves, needs=needs)
    assert set(source.statistics("model.layers.0")[first]) == {"gram", "abs_max"}
    assert [group in shelves["abs_max"] for group in ("model.layers.0", "model.layers.1")] == [True, False]
    monkeypatch.setattr(llama.model, "forward", None)
    again = DenseStatistics(llama, layers, windows, shelves, needs=needs)
    assert all(set(part) == {"gram"} for part in again.statistics("model.layers.1").values())


def test_channel_statistics_equal_their_definition(model: PreTrainedModel, windows: torch.Tensor) -> None:
    layers = find_matrices(model, Targets())
    names = [layer.name for layer in layers]
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.no_grad(), input_hooks(submodules(model, names), lambda name, x: inputs[name].append(x.flatten(0, -2))):
        model(windows, use_cache=False)
    found = collect(model, layers, windows, ["abs_mean", "abs_max"])
    for name in names:
        x = torch.cat(inputs[name]).abs()
        torch.testing.assert_close(found[name]["abs_mean"], x.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name]["abs_max"], x.amax(0), rtol=1e-4, atol=1e-6)


def test_layers_in_one_block_are_grouped_by_their_input(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    path = BlockwiseStatistics(llama, find_matrices(llama, Targets()), windows, ["gram"])
    sets = [[name.rpartition(".")[2] for name in names] for names in path.sharing("model.layers.1")]
    assert sets == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
