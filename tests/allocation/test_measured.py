"""Predicted losses scaled to measured ones: the formula, in a run, from the cache, streamed, and in the estimate."""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Evidence, GlobalLoss, TruncationLoss, measure, scaled
from svdexp.allocation.divergence import Divergences
from svdexp.allocation.measured import depth_factor, scales
from svdexp.allocation.spectra import tails
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.hooks import input_hooks
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import SigmaFuse
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model
from tests.support.streaming import streamed
from tests.training.test_training import loud

SCALED = GlobalLoss(measured=0.3, windows=2, length=16)
METHOD = Method("scaled", InputMoment(), SCALED, FactorStorage())


class Spy(GlobalLoss):
    """Keeps what it was given."""

    def __call__(self, budget: Budget, evidence: Any) -> Any:
        SEEN.append((budget, evidence))
        return super().__call__(budget, evidence)


SEEN: list[tuple[Budget, Evidence]] = []


def seen(model: PreTrainedModel, windows: torch.Tensor, allocation: Spy, **how: Any) -> tuple[Budget, Evidence]:
    SEEN.clear()
    compress(model, windows, replace(METHOD, allocation=allocation), 0.6, **how)
    return SEEN.pop()


@torch.no_grad()
def divergence_at(model: PreTrainedModel, name: str, rank: int, windows: torch.Tensor, part: torch.Tensor) -> float:
    """KL on `part` with one weight projected on the leading directions of its outputs on `windows`, in float64."""
    dense, x = model.get_submodule(name), []
    p = model(part, use_cache=False).logits.double().log_softmax(-1)
    with input_hooks({name: dense}, lambda _, value: x.append(value.flatten(0, 1).double())):
        model(windows, use_cache=False)
    U = torch.linalg.svd(x[0] @ dense.weight.double().T, full_matrices=False).Vh[:rank]
    before = dense.weight.data
    dense.weight.data = (U.T @ U @ before.double()).float()
    q = model(part, use_cache=False).logits.double().log_softmax(-1)
    dense.weight.data = before
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_every_layer_costs_at_the_rank_what_was_measured_there(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """And its spectrum keeps its shape; measured means by whole copies of the model with the factors of that rank."""
    _, plain = seen(tiny_model("llama_gqa"), windows, Spy())
    budget, found = seen(tiny_model("llama_gqa"), windows, Spy(measured=0.3, windows=2, length=16))
    assert plain.scales == {}
    for name in ("model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj"):
        m, n = budget.shapes[name]
        rank = int(0.3 * m * n / (m + n))
        expected = divergence_at(llama, name, rank, windows, windows[:2, :16])
        assert float(tails(found.spectra[name])[rank]) == pytest.approx(expected, 2e-2)
        ratio = found.spectra[name].square() / plain.spectra[name].square()
        torch.testing.assert_close(ratio, torch.full_like(ratio, found.scales[name]))


def test_what_cannot_be_measured_is_scaled_as_the_others_are() -> None:
    predicted = {"a": 2.0, "b": 1.0, "c": 4.0, "idle": 1.0, "nothing": 0.0}
    measured = {"a": 1.0, "b": 3.0, "c": 4.0, "idle": 0.0, "nothing": 0.1}
    names = [*predicted, "whole"]
    assert scales(predicted, measured, names) == {
        "a": 0.5,
        "b": 3.0,
        "c": 1.0,
        "idle": 1.0,
        "nothing": 1.0,
        "whole": 1.0,
    }
    assert scales({}, {}, ["whole"]) == {"whole": 1.0}


def test_a_matrix_that_stays_whole_at_the_share_is_not_measured(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """(16, 32) has no multiple of 11 that is cheaper; its scale is what the median of the others is."""
    some = Targets(include=["*.0.self_attn.k_proj", "*.mlp.*"])
    _, evidence = seen(llama, windows, Spy(measured=0.9, rank_align=11), targets=some)
    alone = evidence.scales.pop("model.layers.0.self_attn.k_proj")
    assert len(evidence.scales) == 9
    assert alone == median(evidence.scales.values())


def test_fixed_layers_are_not_measured(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    _, evidence = seen(llama, windows, Spy(measured=0.3), targets=Targets(ranks={"*.self_attn.*": None}))
    assert evidence.scales
    assert not any("attn" in name for name in evidence.scales)
    _, evidence = seen(tiny_model("llama_gqa"), windows, Spy(measured=0.3))
    assert len(evidence.scales) == 3 * 7


def test_nothing_is_measured_twice(windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at another ratio, and after an interruption only what is left."""
    calls: list[str] = []
    real = Divergences.__call__

    def count(self: Divergences, replacements: Any, what: str | None = None) -> dict[str, float]:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.extend(replacements)
        return real(self, replacements, what)

    monkeypatch.setattr(Divergences, "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_model("llama_gqa"), windows, METHOD, 0.8, cache=Cache(tmp_path))
    monkeypatch.setattr(Divergences, "__call__", lambda self, *a: (calls.extend(a[0]), real(self, *a))[1])
    first = compress(tiny_model("llama_gqa"), windows, METHOD, 0.8, cache=Cache(tmp_path))
    assert len(calls) == len(set(calls)) == 3 * 7
    compress(tiny_model("llama_gqa"), windows, METHOD, 0.6, cache=Cache(tmp_path))
    assert len(calls) == 3 * 7
    assert first.ranks == compress(tiny_model("llama_gqa"), windows, METHOD, 0.8).ranks
    other = replace(METHOD, allocation=replace(SCALED, measured=0.5))
    compress(tiny_model("llama_gqa"), windows, other, 0.8, cache=Cache(tmp_path))
    assert len(calls) == 3 * 3 * 7  # that of no cache counts as well


def test_other_factors_of_the_same_product_are_measured_again(windows: torch.Tensor, tmp_path: Path) -> None:
    """In 16 bits they round in another way."""
    method = Method("kron", InputMoment(), GlobalLoss(measured=0.5, windows=1, length=4), FactorStorage())
    targets = Targets(include=["*layers.2.*v_proj"])
    for fuse in (SigmaFuse.balanced, SigmaFuse.U):
        model = tiny_model("llama").bfloat16()
        compress(model, windows[:2], replace(method, sigma_fuse=fuse), 0.7, targets=targets, cache=Cache(tmp_path))
    assert len(list((tmp_path / "divergence").iterdir())) == 2


def test_streamed_is_the_same(windows: torch.Tensor, tmp_path: Path) -> None:
    """Of a model whose matrices are so large that no divergence is a rounding error of the passes."""
    spy = Spy(measured=0.3, windows=2, length=16)
    _, whole = seen(loud(tiny_model("llama_gqa")), windows, spy)
    model = streamed(loud(tiny_model("llama_gqa")), tmp_path)
    _, swept = seen(model, windows, spy, cache=Cache(tmp_path / "cache"))
    assert swept.scales == pytest.approx(whole.scales, rel=1e-2)
    assert max(whole.scales.values()) > 100 * min(whole.scales.values())
    model = streamed(loud(tiny_model("llama_gqa")), tmp_path / "again")
    done = compress(model, windows, METHOD, 0.6, cache=Cache(tmp_path / "cache"))
    assert done.ranks == compress(loud(tiny_model("llama_gqa")), windows, METHOD, 0.6).ranks


def test_the_dense_model_is_measured(windows: torch.Tensor, llama: PreTrainedModel) -> None:
    """Evidence is as it was where the allocation asks for nothing, and the model always."""
    evidence = Evidence(llama, windows, {"a": torch.ones(3)}, None)  # type: ignore[arg-type]
    budget = Budget(0.5, {"a": (3, 3)}, FactorStorage())
    assert measure(GlobalLoss(), budget, evidence) is evidence
    assert measure(SCALED, replace(budget, shapes={}), evidence) is evidence


def test_truncation_loss_sees_scaled_errors(windows: torch.Tensor) -> None:
    ranks = [
        compress(tiny_model("llama_gqa"), windows, replace(METHOD, allocation=allocation), 0.5).ranks
        for allocation in (TruncationLoss(), TruncationLoss(measured=0.3))
    ]
    assert ranks[0] != ranks[1]


def test_early_blocks_may_count_more(windows: torch.Tensor) -> None:
    """1 + 4 · 2/2, 1 + 4 · 1/2 and 1 in three blocks; outside of them 1."""
    _, once = seen(tiny_model("llama_gqa"), windows, Spy(measured=0.3))
    _, more = seen(tiny_model("llama_gqa"), windows, Spy(measured=0.3, depth=4.0))
    factors = {name: more.scales[name] / scale for name, scale in once.scales.items()}
    assert factors == pytest.approx({name: 5 - 2 * int(name.split(".")[2]) for name in factors})
    assert depth_factor("lm_head", ["a.0", "a.1"], 4.0) == depth_factor("a.0.q", ["a.0"], 4.0) == 1
    assert depth_factor("a.1.q", [f"a.{i}" for i in range(11)], 4.0) == pytest.approx(1 + 4 * 0.9)


def test_tails_are_squares() -> None:
    spectra = {"a": torch.tensor([3.0, 2.0, 1.0]), "b": torch.tensor([1.0])}
    found = scaled(spectra, {"a": 4.0})
    assert tails(found["a"]).tolist() == (4 * tails(spectra["a"])).tolist()
    assert found["b"] is spectra["b"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measured": 0.0}, r"method\.allocation\.measured must be in \(0, 1\), not 0"),
        ({"measured": 1.0}, "measured must be in"),
        ({"windows": 0}, r"method\.allocation\.windows"),
        ({"measured": 0.1, "depth": -1.0}, r"method\.allocation\.depth must be at least 0, not -1"),
        ({"depth": 2.0}, r"method\.allocation\.depth has no effect without method\.allocation\.measured"),
        ({"length": 1}, r"method\.allocation\.length must be at least 2, not 1"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GlobalLoss(**options)
