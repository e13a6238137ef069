"""D-Rank's, SVD-LLM V2's and Swift-SVD*'s formulas against small cases computed by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Dynamic, EffectiveRank, Evidence, TruncationLoss, dynamic
from svdexp.allocation.budget import by_type
from svdexp.allocation.dynamic import block_importance, layer_importance, wanted_ranks
from svdexp.allocation.effective_rank import move_ranks
from svdexp.allocation.spectra import effective_rank, stable_rank, tails, uniform_errors
from svdexp.allocation.truncation_loss import removed_ratios
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.matrices import Ranks
from svdexp.models.path import hidden_states
from svdexp.models.structure import find_blocks
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model


def evidence(windows: torch.Tensor | None = None, **spectra: torch.Tensor) -> Evidence:
    named = {name.replace("__", "."): spectrum for name, spectrum in spectra.items()}
    return Evidence(None, windows, named, None)  # type: ignore[arg-type]


def test_tails() -> None:
    assert tails(torch.tensor([3.0, 2.0, 1.0])).tolist() == [14, 5, 1, 0]


def test_effective_rank_counts_equal_components() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([2.0, 1.0])) == pytest.approx(5 / 4 * 4**0.2)  # H of (.8, .2) = ln 5 − .8 ln 4


def test_stable_rank() -> None:
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)


def test_a_type_is_what_a_matrix_does_and_no_experts_number() -> None:
    """Of a stack all experts' are one; linear layers of an nn.Sequential are told apart by their shapes."""
    shapes = {"0.q_proj": (4, 4), "1.q_proj": (6, 4), "0.up.0": (8, 4), "0.up.1": (8, 4), "1.up.0": (8, 4)}
    shapes |= {"0.down.0": (4, 8), "0.mlp.0": (8, 4), "0.mlp.2": (4, 8)}
    types = [["0.q_proj", "1.q_proj"], ["0.up.0", "0.up.1", "1.up.0"], ["0.down.0"], ["0.mlp.0"], ["0.mlp.2"]]
    assert by_type(shapes) == types


def test_drank_follows_the_square_root() -> None:
    """Effective ranks 4 and 16, equal shapes: ranks 1 : 2. At 0.375 of two (64, 64): 3072 numbers, 24 ranks."""
    spectra = {"a": torch.zeros(64), "b": torch.zeros(64)}
    spectra["a"][:4] = 1
    spectra["b"][:16] = 1
    budget = Budget(0.375, {"a": (64, 64), "b": (64, 64)}, FactorStorage())
    assert EffectiveRank()(budget, evidence(**spectra)) == {"a": 8, "b": 16}


def test_drank_pays_for_the_shape() -> None:
    """k ∝ √(R / ω): the effective rank 16 in both, ω = 128 and 256, so √2 : 1 of 0.5 · (64 · 64 + 64 · 192) numbers."""
    spectra = {"a": torch.ones(64), "b": torch.ones(64)}
    for spectrum in spectra.values():
        spectrum[16:] = 0
    budget = Budget(0.5, {"a": (64, 64), "b": (64, 192)}, FactorStorage())
    unit = 8192 / (128 * math.sqrt(2) + 256)
    ranks = EffectiveRank()(budget, evidence(**spectra))
    assert ranks == pytest.approx({"a": math.sqrt(2) * unit, "b": unit}, abs=1)


def test_drank_moves_as_its_options_say() -> None:
    """Equal spectra and shapes: 16 ranks each, of which half a query's go to the values."""
    spectra = {"0__q_proj": torch.ones(64), "0__v_proj": torch.ones(64)}
    budget = Budget(0.5, {"0.q_proj": (64, 64), "0.v_proj": (64, 64)}, FactorStorage())
    assert EffectiveRank(move=0.5)(budget, evidence(**spectra)) == {"0.q_proj": 8, "0.v_proj": 24}
    assert EffectiveRank(move=0)(budget, evidence(**spectra)) == {"0.q_proj": 16, "0.v_proj": 16}


def test_drank_moves_queries_and_keys_to_values() -> None:
    wanted = {"0.q_proj": 10.0, "0.k_proj": 20.0, "0.v_proj": 5.0, "0.up": 7.0, "1.q_proj": 3.0}
    weights = {"0.q_proj": 100, "0.k_proj": 50, "0.v_proj": 50, "0.up": 100, "1.q_proj": 100}
    moved = move_ranks(wanted, weights, 0.5, ["*q_proj", "*k_proj"], ["*v_proj"])
    assert moved == {"0.q_proj": 5, "0.k_proj": 10, "0.v_proj": 5 + 10 + 10, "0.up": 7, "1.q_proj": 3}
    assert sum(moved[n] * weights[n] for n in wanted) == sum(wanted[n] * weights[n] for n in wanted)
    assert move_ranks(wanted, weights, 0.5, ["*nothing"], ["*v_proj"]) == wanted
    assert move_ranks(wanted, weights, 0.5, ["*q_proj"], []) == wanted


def test_v2_removed_ratios() -> None:
    """Losses e² and e⁴: ℓ = 1/2 and 1/4, so 2 · 0.3 is split 2 : 1."""
    removed = removed_ratios({"a": math.e**2, "b": math.e**4}, 0.3)
    assert removed == pytest.approx({"a": 0.4, "b": 0.2})
    assert removed_ratios({"a": 0.0, "b": math.e}, 0.3) == pytest.approx({"a": 0.3, "b": 0.3})  # the guard


def test_v2_ranks() -> None:
    """One token, tails e⁴ and e⁸ beyond rank 16 of (64, 64): kept 1 − 2/3 and 1 − 1/3 of 2 · 16 ranks."""
    low, high = torch.zeros(64), torch.zeros(64)
    low[:17], high[:17] = math.e**2, math.e**4
    budget = Budget(0.5, {"0.q": (64, 64), "1.q": (64, 64)}, FactorStorage())
    ranks = TruncationLoss()(budget, evidence(torch.zeros(1, 1), **{"0__q": low, "1__q": high}))
    assert ranks == {"0.q": 11, "1.q": 21}  # 10⅔ and 21⅓: the rank left over goes where rounding took most


def test_v2_types_do_not_trade_with_each_other() -> None:
    """Every type keeps its share, however much more another one loses; of the keys each alone loses e² and e⁴."""
    low, high, higher = torch.zeros(64), torch.zeros(64), torch.zeros(64)
    low[:17], high[:17], higher[:17] = math.e**2, math.e**4, math.e**30
    names = ("0.q", "1.q", "0.k", "1.k")
    budget = Budget(0.5, dict.fromkeys(names, (64, 64)), FactorStorage())
    spectra = dict(zip(("0__q", "1__q", "0__k", "1__k"), (higher, higher, low, high), strict=True))
    ranks = TruncationLoss()(budget, evidence(torch.zeros(1, 1), **spectra))
    assert (ranks["0.q"], ranks["1.q"]) == (16, 16)
    assert (ranks["0.k"], ranks["1.k"]) == (11, 21)


def test_v2_leaves_the_lowest_rank_where_more_than_all_would_go() -> None:
    """Losses e and e¹⁰⁰: of two matrices that lose 0.6 on average the first would lose 1.19; it keeps one rank."""
    low, high = torch.zeros(2, 64, dtype=torch.float64)
    low[:13], high[:13] = math.e, math.e**100
    budget = Budget(0.4, {"0.q": (64, 64), "1.q": (64, 64)}, FactorStorage())
    ranks = TruncationLoss()(budget, evidence(torch.zeros(1, 1), **{"0__q": low, "1__q": high}))
    assert ranks["0.q"] == 1
    assert budget.spent(ranks) > budget.total - 128 * 16


def test_errors_are_those_of_all_tokens() -> None:
    """Spectra are means per token: the tail 3² + 4² beyond rank 16, over 6 tokens."""
    spectrum = torch.zeros(64)
    spectrum[:16], spectrum[16], spectrum[17] = 9, 4, 3
    budget = Budget(0.5, {"0.q": (64, 64)}, FactorStorage())
    found = uniform_errors(budget, evidence(torch.zeros(2, 3), **{"0__q": spectrum}))
    assert found == pytest.approx({"0.q": math.sqrt(6 * 25)})


def test_swift_ranks() -> None:
    """δ = ½: half of k̄ = 16 each, the other 16 in proportion to β^¼ log(e + ε)^¾ = 2 · 1 : 1 · 8."""
    budget = Budget(0.5, {"0.q": (64, 64), "1.q": (64, 64)}, FactorStorage())
    errors = {"0.q": 0.0, "1.q": math.e**16 - math.e}
    wanted = wanted_ranks(budget, {"0.q": 16.0, "1.q": 1.0}, errors, delta=0.5, alpha=0.25)
    assert wanted == pytest.approx({"0.q": 8 + 16 * 0.2, "1.q": 8 + 16 * 0.8})
    assert budget.fit(wanted) == {"0.q": 11, "1.q": 21}


def test_types_do_not_trade_with_each_other() -> None:
    budget = Budget(0.5, {"0.q": (64, 64), "0.k": (32, 64)}, FactorStorage())
    wanted = wanted_ranks(budget, {"0.q": 2.0, "0.k": 1.0}, {"0.q": 9.0, "0.k": 0.0}, delta=0.5, alpha=0.5)
    assert wanted == pytest.approx({name: budget.uniform_rank(name) for name in budget.shapes})


def test_block_importance_is_the_cosine_of_hidden_states(
    model: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the hidden states that the model reports, the last one before the final norm; in several batches."""
    *_, last = find_blocks(model)[1]
    behind: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda module, args, output: behind.append(hidden_states(output)))
    states = [*model(windows, output_hidden_states=True).hidden_states[:-1], *behind]
    handle.remove()
    direct = [float(1 - nn.functional.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(states)]
    monkeypatch.setattr("svdexp.data.windows.TOKENS_PER_BATCH", 4 * windows.shape[1])
    assert block_importance(model, windows).tolist() == pytest.approx(direct, abs=1e-5)


def test_importance_is_scaled_to_one_and_two(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    raw = block_importance(llama, windows)
    beta = layer_importance(llama, raw, [*names, "lm_head"])
    expected = (1 + (raw - raw.min()) / (raw.max() - raw.min())).tolist()
    assert beta == pytest.approx({**dict(zip(names, expected, strict=True)), "lm_head": 1.0})
    assert sorted(expected)[0] == 1
    assert sorted(expected)[-1] == 2


def swift(windows: torch.Tensor, allocation: Dynamic) -> tuple[Ranks, float]:
    """The ranks at 0.5, and what the first two windows lose with them."""
    model = tiny_model("llama_gqa")
    result = compress(model, windows, Method("swift", InputMoment(), allocation, FactorStorage()), 0.5)
    assert 0.5 * 0.98 < result.achieved_ratio <= 0.5
    return result.ranks, float(model(windows[:2], labels=windows[:2]).loss)


def test_alpha_is_the_one_that_loses_least(windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, each carried out; on the windows that the search looks at, not on all."""
    monkeypatch.setattr(dynamic, "ALPHAS", [0.0, 0.5, 1.0])
    outcomes = [swift(windows, Dynamic(delta=0.1, alpha=alpha)) for alpha in dynamic.ALPHAS]
    ranks, loss = min(outcomes, key=lambda outcome: outcome[1])
    assert len({str(ranks) for ranks, _ in outcomes}) == 3
    found = swift(windows, Dynamic(delta=0.1, alpha=None, windows=2))
    assert found[0] == ranks
    assert found[1] == pytest.approx(loss)


def test_importance_alone_follows_the_blocks(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """δ = 0, α = 1: within a type ranks are as β, which the blocks' cosines give."""
    allocation = Dynamic(delta=0.0, alpha=1.0)
    raw = block_importance(llama, windows)
    beta = (1 + (raw - raw.min()) / (raw.max() - raw.min())).tolist()
    ranks = compress(llama, windows, Method("swift", InputMoment(), allocation, FactorStorage()), 0.5).ranks
    kept = [ranks[f"model.layers.{index}.mlp.up_proj"] or 0 for index in range(3)]
    assert [rank / sum(kept) for rank in kept] == pytest.approx([b / sum(beta) for b in beta], abs=0.05)
