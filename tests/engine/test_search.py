"""The smallest size at which a model is nearly as good as the dense one."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import FormsFromFile, FromFile, GlobalLoss, Learned, Sensitivity, Uniform, Whole, measured
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.engine.search import Measure, TooSmallError, Trial, search
from svdexp.engine.size import NearDense
from svdexp.evaluation import NotFiniteError
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.structure import Targets
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, FormStorage, GPTQStorage, PivotStorage, RTNStorage
from svdexp.training import Distill
from svdexp.update import RefitOutput
from tests.conftest import tiny_model

WANTED = NearDense(1.05, "prose")
SVD_LLM = Method("svd_llm", InputMoment(), Uniform(), PivotStorage())
METHODS = {
    "svd_llm": SVD_LLM,
    "global_loss": Method("energy", InputMoment(), GlobalLoss(), FactorStorage()),
    "blockwise": Method("blockwise", InputMoment(), Uniform(), PivotStorage(), traversal=Traversal.blockwise),
    "refitted": Method("svd_llm_update", InputMoment(), Uniform(), FactorStorage(), update=RefitOutput()),
    "quantised": Method("gptq", InputMoment(), Uniform(), GPTQStorage(code_bits=8, group_size=16)),
}


def unlikeness(model: PreTrainedModel, windows: torch.Tensor) -> Measure:
    """Of a model 1, and the more it differs from what `model` is now the larger."""
    with torch.no_grad():
        expected = model(windows).logits

    def measure(model: PreTrainedModel) -> float:
        with torch.no_grad():
            return 1.0 + float((model(windows).logits - expected).norm() / expected.norm())

    return measure


def searched(curve: Any, wanted: NearDense = WANTED) -> Any:
    """A search where a model at a ratio has the perplexity that `curve` says, and the dense one 10."""
    at: list[float] = []

    @contextmanager
    def compressed(ratio: float) -> Iterator[None]:
        if curve(ratio) is None:
            raise TooSmallError("no rank is left")
        at.append(ratio)
        yield
        at.pop()

    def measure(model: PreTrainedModel) -> float:
        return float(curve(at[0])) if at else 10.0

    return search(wanted, tiny_model("llama"), measure, compressed)


@pytest.mark.parametrize("edge", [0.01, 0.02, 0.37, 0.8, 0.99, 1.0])
def test_the_smallest_hundredth_is_found_in_few_trials(edge: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = searched(lambda ratio: 10.4 if ratio >= edge - 1e-9 else None if ratio < 0.3 else 10.6)
    assert found.ratio == edge
    assert found.dense == 10.0
    assert len(found.trials) <= 7
    tried = {trial.ratio: trial.ppl for trial in found.trials}
    assert tried[edge] == 10.4
    assert edge == 0.01 or tried[round(edge - 0.01, 2)] != 10.4
    assert len([line for line in caplog.messages if line.startswith("ratio ")]) == len(found.trials)


def test_what_is_not_finite_or_cannot_be_had_is_too_small() -> None:
    def curve(ratio: float) -> float | None:
        if ratio < 0.5:
            return None
        if ratio < 0.7:
            raise NotFiniteError("the loss is nan")
        return 10.2

    found = searched(curve)
    assert found.ratio == 0.7
    assert Trial(0.69, None) in found.trials


def test_an_error_that_is_about_something_else_ends_the_search() -> None:
    def curve(ratio: float) -> float:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        searched(curve)


def test_where_all_bits_are_not_enough() -> None:
    tried: list[float] = []
    with pytest.raises(UserError, match=r"^ppl=1\.05x: even at ratio=1 perplexity on prose is above 1\.05 times"):
        searched(lambda ratio: tried.append(ratio) or 10.51)
    assert max(tried) == 1


@pytest.mark.parametrize("name", METHODS)
def test_it_is_what_a_run_at_that_ratio_gives(name: str, windows: torch.Tensor) -> None:
    method, model = METHODS[name], tiny_model("llama")
    wanted = NearDense(1.15, "windows")
    clock = StageClock()
    found = compress(model, windows, method, wanted, perplexity=unlikeness(model, windows), clock=clock)
    assert found.search
    assert found.search.dense == 1.0
    assert found.search.wanted == wanted
    tried = {trial.ratio: trial.ppl for trial in found.search.trials}
    assert found.ratio == found.search.ratio < 1
    assert tried[found.ratio] <= 1.15
    below = tried[round(found.ratio - 0.01, 2)]
    assert below is None or below > 1.15

    again = tiny_model("llama")
    before = unlikeness(again, windows)
    expected = compress(again, windows, method, found.ratio)
    assert expected.search is None
    assert found.ranks == expected.ranks
    assert found.layer_bits == expected.layer_bits
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert before(model) == pytest.approx(tried[found.ratio], rel=1e-6)
    assert "search" in clock.seconds


def test_what_an_allocation_measures_is_measured_once(windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a folder: what is measured serves every ratio."""
    counts: list[int] = []
    real = measured.measure_missing

    def counted(meter: Any, layers: Mapping[str, Any], shelf: Any) -> None:
        counts.append(len(layers))
        real(meter, layers, shelf)

    monkeypatch.setattr(measured, "measure_missing", counted)
    model = tiny_model("llama")
    method = Method("scaled", InputMoment(), GlobalLoss(measured=0.2), FactorStorage())
    found = compress(model, windows, method, NearDense(1.15, "windows"), perplexity=unlikeness(model, windows))
    assert found.search
    assert len(found.search.trials) > 1
    assert counts == [len(found.layers)]


def test_trials_leave_no_trace_where_none_is_near_enough(windows: torch.Tensor) -> None:
    model = tiny_model("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    coarse = Method("coarse", InputMoment(), Uniform(), RTNStorage(code_bits=4))
    with pytest.raises(UserError, match="even at ratio=1"):
        compress(model, windows, coarse, NearDense(1.0, "windows"), perplexity=unlikeness(model, windows))
    state = model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, state[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method("fixed", InputMoment(), FromFile("ranks.json"), FactorStorage()), "no sizes to choose from"),
        (Method("forms", InputMoment(), FormsFromFile("forms.json"), FormStorage()), "no sizes to choose from"),
        (Method("quantise", None, Whole(), RTNStorage(code_bits=4)), "no sizes to choose from"),
        (Method("target", InputMoment(), Sensitivity(ppl_target=9.0), FactorStorage()), "ppl_target both say"),
        (Method("learned", InputMoment(), Learned(), FactorStorage()), "would train for each anew"),
        (
            Method("trained", InputMoment(), Uniform(), FactorStorage(), training={"distill": Distill()}),
            "would train for each anew",
        ),
    ],
    ids=["file", "forms", "whole", "target", "learned", "trained"],
)
def test_methods_without_sizes_to_try_are_refused(method: Method, message: str, windows: torch.Tensor) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match=message):
        compress(model, windows, method, WANTED, perplexity=unlikeness(model, windows))


def test_a_plan_is_for_what_can_be_had(llama: PreTrainedModel) -> None:
    assert plan(llama, SVD_LLM, WANTED, Targets()).budget.ratio == 0.8
    fixed = Targets(ranks={"*.mlp.*": None})  # more than 0.8 of all, so that nothing is left at it
    assert plan(llama, SVD_LLM, WANTED, fixed).budget.ratio in (0.8, 1.0)
    most = Targets(ranks={"*.mlp.*": None, "*.q_proj": None, "*.o_proj": None})
    assert plan(llama, SVD_LLM, WANTED, most).budget.ratio == 1.0
