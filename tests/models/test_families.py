"""One suite over the matrices of every family, on every architecture: what the rooms may take a handle for."""

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.calibration.dense import forward_and_backward
from svdexp.models import matrices
from svdexp.models.families import FAMILIES, LINEAR
from svdexp.models.families.linear import Linear
from svdexp.models.hooks import gradient_hooks, input_hooks
from svdexp.models.matrices import Matrix, found_in, layers_of, matrices_in
from svdexp.models.structure import Targets, find_matrices, unknown_stacks
from svdexp.storage import NUMBER_BITS, FactorStorage, stored_bits
from tests.conftest import TINY, tiny_model
from tests.support.experts import EXPERTS, tiny_experts
from tests.support.shrunk import truncated

# With biases and transposed stacks, and beside shared experts and a first block without any.
MIXTURES = ["gpt_oss", "deepseek_v3"]
NAMES = [*TINY, *MIXTURES]


def tiny(name: str) -> PreTrainedModel:
    """One of them."""
    return tiny_model(name) if name in TINY else tiny_experts(name)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


def skeleton(name: str) -> PreTrainedModel:
    """The architecture without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy((TINY | EXPERTS)[name]))
    return model


def of_one_block(model: PreTrainedModel) -> list[Matrix]:
    """Those of the second block: of each kind one."""
    matrices = find_matrices(model, Targets())
    return [matrix for matrix in matrices if matrix.group.endswith(".1")]


def test_every_family_is_met() -> None:
    assert {matrix.family for name in NAMES for matrix in find_matrices(tiny(name), Targets())} == set(FAMILIES)


def test_layers_compute_what_weight_and_bias_say(model: PreTrainedModel) -> None:
    for matrix in find_matrices(model, Targets()):
        W, b, layer = matrix.weight(model), matrix.bias(model), matrix.layer(model)
        assert W.shape == (matrix.m, matrix.n)
        x = torch.randn(2, 5, matrix.n)
        y = layer(x)
        torch.testing.assert_close(y, x @ W.T + (0 if b is None else b))
        assert matrix.computes(model, (x,), y)
        assert not matrix.computes(model, (), y)
        assert isinstance(model.get_submodule(matrix.holder), nn.Module)


def test_the_weight_is_the_models_own(model: PreTrainedModel, windows: torch.Tensor) -> None:
    before = model(windows).logits
    for matrix in of_one_block(model):
        parameter = matrix.family.parameter(matrix.layer(model))
        assert any(parameter is own for own in model.parameters())
        changed = parameter.clone()
        matrix.weight(model)[1, 2] += 1
        assert int((parameter != changed).sum()) == 1
        assert not torch.equal(model(windows).logits, before)
        matrix.weight(model)[1, 2] -= 1


def test_what_is_put_runs_and_what_stood_there_comes_back(model: PreTrainedModel, windows: torch.Tensor) -> None:
    before, whole = model(windows).logits, matrices_in(model)
    for matrix in of_one_block(model):
        W, b, dense = matrix.weight(model), matrix.bias(model), matrix.layer(model)
        layer = FactorStorage().layer(truncated(W, 2), b, W)
        matrix.put(model, layer)
        assert matrix.layer(model) is model.get_submodule(matrix.name) is layer
        assert not matrix.is_dense(model)
        assert matrix.name not in {found.name for found in found_in(model)}
        torch.testing.assert_close(matrix.weight(model), layer.rank_out.weight @ layer.rank_in.weight)
        assert b is None or torch.equal(matrix.bias(model), b)  # type: ignore[arg-type]
        assert not torch.equal(model(windows).logits, before)
        assert stored_bits(layer) == 2 * (matrix.m + matrix.n) * NUMBER_BITS
        matrix.put(model, dense)
        assert matrix.is_dense(model)
        assert torch.equal(model(windows).logits, before)
        assert stored_bits(matrix.layer(model)) == matrix.m * matrix.n * NUMBER_BITS
    assert matrices_in(model) == whole


@pytest.mark.parametrize("name", NAMES)
def test_dense_layers_of_given_weights_make_the_same_model(name: str, windows: torch.Tensor) -> None:
    model, source, empty = tiny(name), tiny(name), skeleton(name)
    expected = model(windows).logits
    for matrix in find_matrices(model, Targets()):
        W, b = matrix.weight(source).clone(), matrix.bias(source)
        matrix.weight(model).zero_()
        matrix.put(model, matrix.filled(empty, W, b))
        assert matrix.is_dense(model)
    assert torch.equal(model(windows).logits, expected)
    assert [(key, value.shape) for key, value in model.state_dict().items()] == [
        (key, value.shape) for key, value in source.state_dict().items()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_there_are_the_same_matrices(name: str) -> None:
    empty = skeleton(name)
    matrices = find_matrices(empty, Targets())
    assert matrices == find_matrices(tiny(name), Targets())
    assert all(matrix.weight(empty).is_meta and matrix.is_dense(empty) for matrix in matrices)


def test_handles_keep_no_model_alive_and_are_the_same_anywhere(model: PreTrainedModel) -> None:
    matrices = find_matrices(model, Targets())
    assert pickle.loads(pickle.dumps(matrices)) == matrices
    assert len({*matrices, *copy.deepcopy(matrices)}) == len(matrices)
    layer = weakref.ref(matrices[0].layer(model))
    assert layer() is not None
    matrices[0].put(model, nn.Identity())
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize("name", TINY)
def test_layers_by_name_in_the_order_of_the_modules(name: str) -> None:
    model = tiny_model(name)
    found = layers_of(model, find_matrices(model, Targets()))
    inside = [name for name, _ in model.named_modules() if name in found]
    assert list(found) == inside
    assert all(found[name] is model.get_submodule(name) for name in inside)


class Products(TorchFunctionMode):
    """Brute force: every product with one of the weights, whoever asks for it, told by where the weight stands."""

    def __init__(self, model: nn.Module, matrices: list[Matrix]) -> None:
        super().__init__()
        self.names = {matrix.weight(model).data_ptr(): matrix.name for matrix in matrices}
        self.inputs: dict[str, list[torch.Tensor]] = {matrix.name: [] for matrix in matrices}
        self.gradients: dict[str, list[torch.Tensor]] = {matrix.name: [] for matrix in matrices}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (nn.functional.linear, torch.addmm):
            x, W = args[1:3] if func is torch.addmm else args[:2]
            name = self.names.get(W.data_ptr())
            if name is not None:
                self.inputs[name].append(x.detach().flatten(0, -2))
                if result.requires_grad:
                    result.register_hook(lambda g: self.gradients[name].append(g.flatten(0, -2)))
        return result


@pytest.mark.parametrize("name", TINY)
def test_listening_hears_what_every_product_gets(name: str, windows: torch.Tensor) -> None:
    model = tiny_model(name)
    matrices = find_matrices(model, Targets())
    layers = layers_of(model, matrices)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    with (
        input_hooks(layers, lambda name, x: inputs[name].append(x.detach().flatten(0, -2))),
        gradient_hooks(layers, lambda name, x, g: gradients[name].append(g.flatten(0, -2)), inputs=False),
        Products(model, matrices) as products,
    ):
        forward_and_backward(model, windows[:2])
    for heard, expected in ((inputs, products.inputs), (gradients, products.gradients)):
        for name, tensors in expected.items():
            assert len(heard[name]) == len(tensors) == 1
            assert torch.equal(heard[name][0], tensors[0])
            assert bool(tensors[0].any())


@pytest.mark.parametrize("word", ["get_submodule", "Conv1D"])
def test_only_models_knows_what_a_matrix_is(word: str) -> None:
    """All other rooms reach matrices by their handles."""
    package = Path(svdexp.__file__).parent
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if word in path.read_text()}
    assert files
    assert {file for file in files if not file.startswith("models/")} == set()


class Packed(nn.Linear):
    """As libraries that quantise have them."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)


def test_packed_weights_have_no_handle() -> None:
    model = nn.ModuleDict({"packed": Packed(), "plain": nn.Linear(4, 3)})
    assert [found.name for found in found_in(model)] == ["packed", "plain"]
    assert matrices_in(model) == [Matrix("plain", "plain", 3, 4)]


class Stack(nn.Module):
    """Two matrices of one tensor; a slice runs as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 4))


class Slice(nn.Module):
    """One of them."""

    def __init__(self, stack: nn.Parameter, index: int) -> None:
        super().__init__()
        self.weight, self.stack = stack[index], stack


class Slices(Linear):
    """A family that knows them."""

    def dense_layers(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(module, Stack):
            yield from ((f"{name}.{index}", Slice(module.weight, index)) for index in range(2))

    def parameter(self, layer: Any) -> torch.Tensor:
        stack: torch.Tensor = layer.stack
        return stack

    def weight(self, layer: Any) -> torch.Tensor:
        weight: torch.Tensor = layer.weight
        return weight


def test_another_familys_stacks_are_found_and_not_left_dense(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.model.layers[1].mlp.experts = Stack().requires_grad_(False)
    assert list(unknown_stacks(llama, Targets()).values()) == [["model.layers.1.mlp.experts.weight"]]
    family = Slices()
    monkeypatch.setattr(matrices, "FAMILIES", (LINEAR, family))
    assert not unknown_stacks(llama, Targets())
    found = [matrix for matrix in find_matrices(llama, Targets()) if matrix.family is family]
    block = "model.layers.1"
    assert found == [Matrix(f"{block}.mlp.experts.{index}", block, 4, 4, family) for index in range(2)]
