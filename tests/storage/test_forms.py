"""Forms in words, what they cost, and through the engine: what is predicted is what the stored layers lose."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import svdexp
from svdexp.allocation import Budget, Forms, FormsFromFile, GlobalLoss, Uniform, expected_ranks
from svdexp.calibration.dense import collect
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.engine.losses import whole_losses
from svdexp.estimate.decomposition import Sides, measured
from svdexp.factorisation import Metric, TwoSided
from svdexp.factorisation.loss import loss
from svdexp.method import Method
from svdexp.models.factors import Factors
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FormStorage, GPTQStorage, PivotStorage, RTNStorage, stored_bits
from svdexp.storage.forms import form_of
from svdexp.storage.quantised import ENTRIES
from svdexp.storage.rounding import Grid, gptq
from svdexp.training import BlockRefine
from svdexp.update import RefitOutput
from tests.conftest import tiny_model
from tests.storage.test_residual import moment
from tests.storage.test_rounding import drawn

ALL = ["gptq2-g8-fit", "gptq4-g8", "gptq3-g16-zp-fit", "rtn5-row", "pivot", "factors", "factors8-g8", "dense"]
CORRECTED = ["gptq2-g8+factors8-row", "rtn3-g8-zp+factors", "gptq2-g8+factors4-g8"]
MIXED = Method("mixed", TwoSided(), Forms(), FormStorage([*ALL, *CORRECTED], samples=4))


@pytest.mark.parametrize(
    "word",
    ["gptq4", "gptq4-g8-fit-zp", "rtn4-32", "gptq7-g32", "lattice2-g8", "pivot-g8", "dense+factors", "", "gptq4-g0"],
)
def test_no_form(word: str) -> None:
    with pytest.raises(UserError, match=r"is no form; forms are dense|code_bits must be one of|must be at least 1"):
        FormStorage([word])


@pytest.mark.parametrize("word", [*ALL, *CORRECTED])
def test_the_price_is_what_is_stored(word: str) -> None:
    """Of whole forms by the layer that stands at the end, of others at a rank."""
    form, W, C = form_of(word, 4), torch.nn.Linear(30, 7), moment(30, 3).float()
    like = W.weight.detach()
    if form.ranked:
        _, kept = form.storage.target(like, C)
        layer = form.storage.layer(Factors(torch.randn(7, 3), torch.randn(3, 30)), None, like, kept)
        assert stored_bits(layer) == form.storage.bits(3, 7, 30)
    elif isinstance(form.storage, GPTQStorage):
        assert stored_bits(form.storage.calibrated_whole(like, None, C)) == form.storage.whole_bits(7, 30)
    else:
        whole = form.storage.whole(like, None)
        assert (7 * 30 * 16 if whole is None else stored_bits(whole)) == form.storage.whole_bits(7, 30)


def test_losses_of_codes_are_those_of_rounded_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices of one input, whose outputs weigh differently; whether widths go at once or one by one."""
    C = moment(40, 3)
    weights = {"q": drawn(12, 40), "k": drawn(6, 40, seed=7)}
    metrics = {"q": Metric(moment(12, 5), C), "k": Metric(moment(6, 8).diagonal(), C)}
    forms = {word: form_of(word, 4) for word in ("gptq2-g8", "gptq3-g8-zp", "gptq4-g16", "rtn3-row", "dense")}
    together = whole_losses(weights, metrics, forms)
    for name, W in weights.items():
        for word, grid in (("gptq2-g8", Grid(2, 8)), ("gptq3-g8-zp", Grid(3, 8, True)), ("gptq4-g16", Grid(4, 16))):
            expected = loss(W - grid.numbers(gptq(W, C, grid)), metrics[name])
            assert float(together[f"{name}/{word}"]) == pytest.approx(expected, rel=5e-3)  # in float32
        nearest = RTNStorage(3, None).whole(W.float(), None)
        torch.testing.assert_close(
            float(together[f"{name}/rtn3-row"]), loss(W - nearest.weight.double(), metrics[name]), rtol=1e-3, atol=0
        )
        assert float(together[f"{name}/dense"]) == 0
    monkeypatch.setattr("svdexp.storage.quantised.ENTRIES", 1)
    alone = whole_losses(weights, metrics, forms)
    assert alone.keys() == together.keys()
    assert all(torch.allclose(alone[key], together[key], rtol=5e-3) for key in alone)
    assert ENTRIES > 1


@pytest.mark.parametrize(("m", "n"), [(5, 7), (600, 20), (20, 530)])
def test_loss_is_the_trace(m: int, n: int) -> None:
    error, G, C = drawn(m, n), moment(m, 1), moment(n, 2)
    assert loss(error, Metric(G, C)) == pytest.approx(float((error.T @ G @ error @ C).trace()))
    assert loss(error, Metric(None, C.diagonal())) == pytest.approx(float((error.square() * C.diagonal()).sum()))
    assert loss(error, Metric()) == pytest.approx(float(error.square().sum()))


@pytest.mark.parametrize("ratio", [0.2, 0.35, 0.7])
def test_the_predicted_loss_is_that_of_the_layers(ratio: float, windows: torch.Tensor) -> None:
    """But for GPTQ, whose inputs at the end are those of the compressed blocks."""
    dense, model = tiny_model("llama_gqa"), tiny_model("llama_gqa")
    method = replace(MIXED, storage=replace(MIXED.storage, samples=len(windows)))
    done = compress(model, windows, method, ratio)
    assert done.achieved_ratio <= ratio
    assert done.forms.keys() == done.ranks.keys()
    statistics = collect(dense, done.layers, windows, ("gram", "grad_gram"))
    for layer in done.layers:
        W, stored = LINEAR.weight(dense.get_submodule(layer.name)), layer.weight(model)
        metric = TwoSided()(statistics[layer.name])
        share = loss((W - stored).double(), metric) / loss(W.double(), metric)
        waits = done.forms[layer.name].startswith("gptq") and "+" not in done.forms[layer.name]
        if not waits:
            assert share == pytest.approx(done.errors[layer.name], rel=0.02, abs=1e-5)
        else:
            assert share < 3 * done.errors[layer.name] + 1e-5


def test_a_choice_is_saved_loaded_and_replayed(windows: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    done = compress(model, windows, MIXED, 0.35, cache=Cache(tmp_path / "cache"))
    assert len({form.partition("@")[0] for form in done.forms.values()}) > 2
    checkpoint.save(model, None, tmp_path / "saved", done.ranks)
    ours, _ = svdexp.load(tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(ours(windows).logits, model(windows).logits)
    assert torch.equal(theirs(windows).logits, model(windows).logits)
    (tmp_path / "forms.json").write_text(json.dumps(dict(done.forms)))
    again = tiny_model("llama_gqa")
    replay = replace(MIXED, allocation=FormsFromFile(str(tmp_path / "forms.json")))
    assert compress(again, windows, replay, 0.35).forms == done.forms
    assert torch.equal(again(windows).logits, model(windows).logits)


def test_losses_are_measured_once(windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ratio measures nothing; a form more is the only one that is measured then."""
    asked: list[list[str]] = []

    def spy(weights, metrics, forms):  # type: ignore[no-untyped-def]
        asked.append(list(forms))
        return whole_losses(weights, metrics, forms)

    monkeypatch.setattr("svdexp.engine.losses.whole_losses", spy)
    codes = ["gptq2-g8", "dense"]
    for forms, ratio in ((codes, 0.4), (codes, 0.6), ([*codes, "rtn4-g8"], 0.6)):
        method = replace(MIXED, storage=FormStorage(forms, samples=4))
        compress(tiny_model("llama_gqa"), windows, method, ratio, cache=Cache(tmp_path))
    assert {tuple(words) for words in asked} == {("gptq2-g8", "dense"), ("rtn4-g8",)}
    assert not (tmp_path / "decompositions").exists()


def test_factors_and_dense_are_kron(windows: torch.Tensor) -> None:
    models = [tiny_model("llama_gqa") for _ in range(2)]
    kron = Method("kron", TwoSided(), GlobalLoss(), PivotStorage())
    mixed = replace(MIXED, storage=FormStorage(["pivot", "dense"]))
    ranks = [compress(model, windows, method, 0.6).ranks for model, method in zip(models, (kron, mixed), strict=True)]
    assert ranks[0] == ranks[1]
    assert torch.equal(*(model(windows).logits for model in models))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"allocation": Uniform()}, r"among which method\.allocation=Uniform does not choose; use method=mixed"),
        ({"storage": PivotStorage()}, r"chooses among the forms of storage=forms, but there is storage=PivotStorage"),
        ({"update": RefitOutput()}, r"method\.update does not repair"),
        ({"training": {"it": BlockRefine()}}, r"method\.training does not repair"),
        ({"traversal": Traversal.blockwise}, r"use method\.traversal=dense"),
    ],
)
def test_what_does_not_go_with_forms(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(MIXED, **change)  # type: ignore[arg-type]


def test_fixed_ranks_are_refused(windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"targets\.ranks says nothing of forms: use method\.allocation\.only"):
        compress(tiny_model("llama_gqa"), windows, MIXED, 0.4, targets=Targets(ranks={"*": 3}))


def test_the_estimate_asks_what_forms_cost() -> None:
    """All matrices whole, at the budget; codes alone take no decomposition, and every form its products."""
    budget = Budget(0.3, {"a": (64, 32), "b": (32, 32)}, FormStorage(["gptq2-g8", "pivot", "dense"]))
    ranks = expected_ranks(Forms(), budget, {})
    assert ranks == {"a": None, "b": None}
    assert budget.expected(ranks) == pytest.approx(0.3 * 16 * 32 * (64 + 32))
    two, three = (
        measured(64, 32, 96, Sides(2, 2), [form_of(word, 4) for word in words]).float64
        for words in (["gptq2-g8", "gptq4-g8"], ["gptq2-g8", "gptq4-g8", "gptq3-g8"])
    )
    each = 64 * 32 * 32 + 64 * 32 * (64 + 2 * 32)
    assert three - two == pytest.approx(each)
    shared = 4 / 3 * 32**3 * 64 / 96
    assert two == pytest.approx(2 * each + shared)
    several = [form_of(word, 4) for word in ("gptq2-g8", "gptq2-g16", "dense")]
    assert measured(64, 32, 96, Sides(2, 2), several).float64 > two + shared * 0.99
    assert measured(64, 32, 64, Sides(2, 2), [form_of("pivot", 4)]).float64 == 0
