"""Options reach the mathematics: what they say is seen in the weights of a compressed model."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from svdexp.allocation import Budget, Evidence, GlobalLoss, Sensitivity, Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import Diagonal, Identity
from svdexp.method import Method
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import SigmaFuse
from svdexp.storage import FactorStorage, GPTQStorage, ResidualStorage
from svdexp.training import BlockRefine
from svdexp.update import RefitOutput
from tests.conftest import tiny_model

PLAIN = Method("svd", Identity(), Uniform(), FactorStorage())
NAME = "model.layers.1.mlp.up_proj"


def tensors(windows: torch.Tensor, method: Method, **options: object) -> dict[str, torch.Tensor]:
    model = tiny_model("llama_gqa")
    compress(model, windows, method, 0.5, targets=Targets(include=[NAME]), **options)  # type: ignore[arg-type]
    return model.get_submodule(NAME).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (replace(PLAIN, update=RefitOutput(samples=2)), replace(PLAIN, update=RefitOutput(samples=6))),
        (replace(PLAIN, storage=GPTQStorage(samples=2)), replace(PLAIN, storage=GPTQStorage(samples=6))),
    ],
    ids=["refit", "gptq"],
)
def test_samples_are_the_first_windows_and_no_more(windows: torch.Tensor, few: Method, many: Method) -> None:
    """Nothing else of these methods looks at the windows."""
    assert same(tensors(windows, few), tensors(windows[:2], few))
    assert not same(tensors(windows, few), tensors(windows, many))


def test_the_singular_values_go_where_sigma_fuse_says(windows: torch.Tensor) -> None:
    """The other factor's vectors are orthonormal."""
    left = tensors(windows, replace(PLAIN, sigma_fuse=SigmaFuse.U))["rank_in.weight"]
    right = tensors(windows, replace(PLAIN, sigma_fuse=SigmaFuse.V))["rank_out.weight"].T
    for vectors in (left, right):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("knob", "part", "option", "member"),
    [
        ("method.weighting", Diagonal(), "scale", "ChannelScale.fisher"),
        ("method.allocation", Sensitivity(), "metric", "SensitivityMetric.ppl"),
        ("storage", ResidualStorage(), "rounding", "Rounding.gptq"),
        ("method", PLAIN, "traversal", "Traversal.blockwise"),
    ],
)
def test_a_word_in_the_place_of_a_member_is_refused(knob: str, part: Any, option: str, member: str) -> None:
    """`is` would take it for the other choice, without a word."""
    word = member.partition(".")[2]
    with pytest.raises(UserError, match=rf"^{knob}\.{option}='{word}' is a plain word: give .*{member}"):
        replace(PLAIN, **{knob.rpartition(".")[2]: replace(part, **{option: word})})


def test_a_training_belongs_to_its_seed(windows: torch.Tensor, tmp_path: Path) -> None:
    method = replace(PLAIN, training={"block_refine": BlockRefine(steps=1, batch=2)})
    for count, seed in enumerate((0, 1), start=1):
        tensors(windows, method, cache=Cache(tmp_path), seed=seed)
        assert len(list((tmp_path / "training").iterdir())) == 3 * count  # of three blocks


@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_a_bit_has_one_price_whatever_the_shape(ratio: float) -> None:
    """Against all choices of ranks: no other within the budget loses noticeably less; a price per rank would at 0.6."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (12, 12), "b": (12, 60), "c": (60, 12)}
    spectra = {name: torch.rand(12, generator=generator).sort(descending=True).values for name in shapes}
    spectra["b"] *= 3
    budget = Budget(ratio, shapes, FactorStorage())
    ladders = {name: budget.ladder(name) for name in shapes}

    def loss(ranks: dict[str, int | None]) -> float:
        return sum(float(spectra[n][12 if r is None else r :].square().sum()) for n, r in ranks.items())

    every = itertools.product(*(map(ladder.rank, range(len(ladder.ranks))) for ladder in ladders.values()))
    choices = [dict(zip(shapes, ranks, strict=True)) for ranks in every]
    best = min(loss(ranks) for ranks in choices if budget.spent(ranks) <= budget.total)
    found = GlobalLoss()(budget, Evidence(None, torch.zeros(1, 1), spectra, None))  # type: ignore[arg-type]
    assert budget.spent(found) <= budget.total
    assert loss(found) <= 1.02 * best
