"""Forms against enumeration of every combination; with factors and dense alone they are `global_loss`; and replays."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from svdexp.allocation import Budget, Evidence, Forms, FormsFromFile, GlobalLoss
from svdexp.allocation.forms import Size, said
from svdexp.allocation.spectra import tails
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, FormStorage, PivotStorage
from tests.allocation.test_global_loss import spectra

SHAPES = {"a": (8, 6), "b": (5, 23), "c": (8, 6)}
CODES = ["rtn2-g4", "gptq3-g4", "gptq4-g4-zp", "rtn8-row", "dense"]
RATIOS = [0.5, 0.56, 0.65, 0.75, 0.9]


def evidence(forms: list[str], seed: int = 0) -> Evidence:
    """Losses of codes fall by about four with every bit, and by chance; those of ranks are tails."""
    sigma, drawn = spectra(seed), torch.Generator().manual_seed(seed + 1)
    losses: dict[str, dict[str, torch.Tensor]] = {}
    for name, values in sigma.items():
        whole = float(tails(values)[0])
        losses[name] = {}
        for form in forms:
            width = next((int(sign) for sign in form if sign.isdigit()), 0)
            noise = float(torch.rand(1, generator=drawn, dtype=torch.float64))
            coded = torch.tensor([whole * (0.5 + noise) * 4.0**-width], dtype=torch.float64)
            losses[name][form] = torch.zeros(1) if form == "dense" else coded if width else tails(values)
    return Evidence(None, None, sigma, None, losses=losses)  # type: ignore[arg-type]


def outcome(chosen: dict[str, Size], found: Evidence) -> tuple[float, int]:
    loss = sum(float(found.losses[name][size.form][size.rank or 0]) for name, size in chosen.items())
    return loss, sum(size.bits for size in chosen.values())


def sizes_chosen(budget: Budget, found: Evidence, allocation: Forms) -> dict[str, Size]:
    ranks, forms = allocation.choose(budget, found)
    tables = allocation.sizes(budget)
    return {
        name: next(size for size in tables[name] if (size.form, size.rank) == (forms[name], ranks[name]))
        for name in SHAPES
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("forms", [CODES, [*CODES, "pivot"], ["gptq3-g4", "factors"]], ids=["codes", "all", "two"])
def test_against_enumeration(forms: list[str], ratio: float, seed: int) -> None:
    """Optimal for what it spends before leftovers, so within the optima at the budget and at one climb less of it."""
    budget, found, allocation = Budget(ratio, SHAPES, FormStorage(forms)), evidence(forms, seed), Forms()
    chosen = sizes_chosen(budget, found, allocation)
    loss, spent = outcome(chosen, found)
    assert spent <= budget.total
    tables = allocation.sizes(budget)
    every = [
        outcome(dict(zip(SHAPES, pick, strict=True)), found) for pick in product(*(tables[name] for name in SHAPES))
    ]
    best = min(lost for lost, bits in every if bits <= budget.total)
    # what a price cannot reach is at most the dearest matrix: nothing cheaper by that much is better
    slack = max(table[-1].bits for table in tables.values())
    assert best - 1e-9 <= loss
    assert loss <= min((lost for lost, bits in every if bits <= budget.total - slack), default=loss) + 1e-9
    at_most = min(lost for lost, bits in every if bits <= spent)
    assert loss <= at_most * (1 + 1e-9) or spent > budget.total - slack
    for word in forms:  # and no form alone is better at its own size
        alone = {name: [size for size in tables[name] if size.form == word and size.rank is None] for name in SHAPES}
        if all(alone.values()):
            uniform = outcome({name: sizes[0] for name, sizes in alone.items()}, found)
            if uniform[1] <= budget.total:
                assert loss <= uniform[0] + 1e-9


@pytest.mark.parametrize("ratio", [0.56, 0.65, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("align", [1, 2])
@pytest.mark.parametrize(("word", "storage"), [("factors", FactorStorage()), ("pivot", PivotStorage())])
def test_factors_and_dense_are_global_loss(word: str, storage: FactorStorage, align: int, ratio: float) -> None:
    found = evidence([word, "dense"])
    ranks, forms = Forms(rank_align=align).choose(Budget(ratio, SHAPES, FormStorage([word, "dense"])), found)
    assert ranks == GlobalLoss(rank_align=align)(Budget(ratio, SHAPES, storage), found)
    assert {name: form == "dense" for name, form in forms.items()} == {name: ranks[name] is None for name in ranks}


def test_patterns_say_what_a_matrix_may_be() -> None:
    budget, found = Budget(0.6, SHAPES, FormStorage(CODES)), evidence(CODES)
    forms = Forms(only={"a": ["rtn2-g4"], "*": ["gptq3-g4", "gptq4-g4-zp"]}).choose(budget, found)[1]
    assert forms["a"] == "rtn2-g4"
    assert {forms["b"], forms["c"]} <= {"gptq3-g4", "gptq4-g4-zp"}


def test_nothing_is_smaller_than_the_smallest() -> None:
    budget, found = Budget(0.5, SHAPES, FormStorage([*CODES, "factors"])), evidence([*CODES, "factors"])
    free, bound = (sizes_chosen(budget, found, Forms(smallest=word)) for word in (None, "gptq3-g4"))
    least = {name: budget.storage.menu["gptq3-g4"].storage.whole_bits(*shape) for name, shape in SHAPES.items()}
    assert any(free[name].bits < least[name] for name in SHAPES)
    assert all(bound[name].bits >= least[name] for name in SHAPES)


@pytest.mark.parametrize(
    ("allocation", "ratio", "sentence"),
    [
        (Forms(), 0.2, r"ratio=0\.2 is too small: the smallest form of every matrix costs 0\.\d+"),
        (Forms(only={"z": ["dense"]}), 0.5, "no layer to compress matches 'z'"),
        (Forms(only={"a": ["pivot"]}), 0.5, "pivot is none of storage.forms: rtn2-g4, gptq3"),
        (Forms(smallest="gptq5-g4"), 0.5, "gptq5-g4 is none of storage.forms"),
        (Forms(only={"a": ["rtn2-g4"]}, smallest="gptq3-g4"), 0.5, r"no form is left for a of shape \(8, 6\)"),
    ],
)
def test_what_cannot_be_is_said(allocation: Forms, ratio: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        allocation.require_room(Budget(ratio, SHAPES, FormStorage(CODES)))


def test_a_file_replays_a_choice(tmp_path: Path) -> None:
    forms = [*CODES, "pivot"]
    budget = Budget(0.5, SHAPES, FormStorage(forms))
    ranks, words = Forms().choose(budget, evidence(forms))
    path = tmp_path / "forms.json"
    path.write_text(json.dumps({name: said(words[name], ranks[name]) for name in ranks}))
    nothing = Evidence(None, None, {}, None)  # type: ignore[arg-type]
    replay = FormsFromFile(str(path))
    assert replay.choose(budget, nothing) == (ranks, words)
    assert replay.files_read() == [path]
    with pytest.raises(UserError, match=r"forms\.json keeps 0\.\d+, more than ratio=0\.3"):
        replay.choose(Budget(0.3, SHAPES, FormStorage(forms)), nothing)
    for broken, sentence in (
        ({**dict.fromkeys(SHAPES, "dense"), "z": "dense"}, "differ, first at z"),
        ({"a": "dense@3", "b": "dense", "c": "dense"}, "a cannot be dense@3; storage.forms has"),
        ({"a": "pivot@7", "b": "dense", "c": "dense"}, "a cannot be pivot@7"),
        ({"a": "pivot@x", "b": "dense", "c": "dense"}, "is not an object of module names and forms"),
        ({"a": 3, "b": "dense", "c": "dense"}, "is not an object of module names and forms"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=sentence):
            replay.choose(budget, nothing)
