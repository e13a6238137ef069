"""KL of models with one matrix replaced, against copies of the model that run as a whole, in float64."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation.divergence import Divergences
from svdexp.evaluation import NotFiniteError
from svdexp.models.hooks import call_hooks, submodules
from svdexp.models.matrices import matrices_in, named
from svdexp.models.structure import named_blocks
from tests.conftest import tiny_model
from tests.models.test_behaviour import LOOPED, made
from tests.support.streaming import streamed


def amplified(model: PreTrainedModel, name: str) -> Callable[[], nn.Module]:
    """Builds the layer called `name` with weights a hundred times as large; what it is made of must be at hand."""

    def build() -> nn.Module:
        (matrix,) = named(model, [name])
        layer = copy.deepcopy(matrix.layer(model))
        layer.weight.data.mul_(100)
        return layer

    return build


def by_hand(model: PreTrainedModel, name: str, windows: torch.Tensor) -> float:
    """Mean over all tokens of Σ p log(p / q)."""
    other = copy.deepcopy(model)
    (matrix,) = named(other, [name])
    matrix.put(other, amplified(model, name)())  # in place it would change a tied embedding as well
    p, q = (one(windows, use_cache=False).logits.double().softmax(-1) for one in (model, other))
    return float((p * (p / q).log()).sum(-1).mean())


def some(model: PreTrainedModel) -> list[str]:
    """The last matrix of every block, and the head."""
    names = [matrix.name for matrix in matrices_in(model)]
    inside = [[name for name in names if name.startswith(f"{block}.")] for block in named_blocks(model)]
    return [members[-1] for members in inside] + names[-1:]


def test_against_whole_passes_of_copies(model: PreTrainedModel, windows: torch.Tensor) -> None:
    meter = Divergences(model, windows)
    names = some(model)
    with torch.no_grad():
        expected = {name: by_hand(model, name, windows) for name in names}
    before = dict(model.named_modules())
    found = {name: meter({name: amplified(model, name)})[name] for name in names}
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert min(expected.values()) > 1e-5
    assert dict(model.named_modules()) == before
    # all at once is the same, to the last bit
    assert Divergences(model, windows)({name: amplified(model, name) for name in names}) == found


def test_blocks_that_do_not_run_alone(windows: torch.Tensor) -> None:
    looped = made(LOOPED)
    name = matrices_in(looped)[-2].name
    with torch.no_grad():
        expected = by_hand(looped, name, windows)
    assert Divergences(looped, windows)({name: amplified(looped, name)})[name] == pytest.approx(expected, rel=2e-3)


def test_what_stands_before_the_matrix_is_not_computed_again(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    meter = Divergences(llama, windows)
    blocks = list(named_blocks(llama))
    inside = {block: f"{block}.mlp.up_proj" for block in blocks}
    meter({inside[blocks[0]]: amplified(llama, inside[blocks[0]])})
    calls: list[str] = []
    parts = submodules(llama, [f"{block}.mlp.down_proj" for block in blocks])
    with call_hooks(parts, lambda name, args, kwargs: calls.append(name)):
        for _ in range(2):
            meter({inside[blocks[2]]: amplified(llama, inside[blocks[2]])})
    # the dense states once through the two blocks before it; then twice what is behind
    assert [calls.count(name) for name in parts] == [len(windows) * times for times in (1, 1, 2)]


def test_a_streamed_model_gives_the_same(windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    names = some(model)[:-1]
    other = streamed(model, tmp_path)
    found = Divergences(other, windows)({name: amplified(other, name) for name in names}, "divergence")
    assert found == Divergences(model, windows)({name: amplified(model, name) for name in names})


def test_predictions_that_are_no_numbers_are_an_error(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    name = "model.layers.1.mlp.up_proj"

    def broken() -> nn.Module:
        layer = copy.deepcopy(llama.get_submodule(name))
        layer.weight.data.fill_(torch.nan)
        return layer

    before = llama.get_submodule(name)
    with pytest.raises(NotFiniteError, match=f"with {name} truncated"):
        Divergences(llama, windows)({name: broken})
    assert llama.get_submodule(name) is before
