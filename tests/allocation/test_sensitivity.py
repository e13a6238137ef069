"""ASVD's search against exhaustive search, and on a model."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Allocation, Budget, Evidence, Sensitivity, SensitivityMetric
from svdexp.allocation.sensitivity import Candidate, meet_budget, ranks_of
from svdexp.allocation.trial import trial_perplexity, truncated_layers
from svdexp.engine.compress import compress
from svdexp.evaluation import perplexity
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.matrices import Ranks
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model

CANDIDATES = [0.4, 0.6, 0.8]


class Spy:
    """Runs an allocation inside compress() and keeps what it saw and chose."""

    needs_spectra = True

    def __init__(self, allocation: Allocation):
        self.allocation = allocation

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        before = dict(evidence.model.named_modules())
        self.ranks = self.allocation(budget, evidence)
        assert dict(evidence.model.named_modules()) == before  # the very same dense layers
        self.budget, self.evidence = budget, evidence
        self.perplexity = trial_perplexity(evidence, self.ranks, evidence.windows[:2])
        return self.ranks


def run(model: PreTrainedModel, windows: torch.Tensor, allocation: Allocation, ratio: float) -> tuple[Any, Spy]:
    spy = Spy(allocation)
    return compress(model, windows, Method("asvd", InputMoment(), spy, FactorStorage()), ratio), spy


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.65, 0.8, 0.9])
def test_search_finds_the_lowest_feasible_threshold(ratio: float, seed: int) -> None:
    budget = Budget(ratio, {f"{i}.q": (200, 200) for i in range(4)}, FactorStorage())
    noise = torch.rand(12, generator=torch.Generator().manual_seed(seed)).tolist()
    cuts = sorted(
        Candidate(noise[3 * i + j], f"{i}.q", candidate) for i in range(4) for j, candidate in enumerate(CANDIDATES)
    )
    ranks = meet_budget(budget, cuts)
    every = [ranks_of(budget, cuts[:count]) for count in range(len(cuts) + 1)]
    best = max((r for r in every if budget.spent(r) <= budget.total), key=budget.spent)
    for name, rank in best.items():  # the best threshold, and only more rank than that from what it left
        assert rank is None or ranks[name] is None or rank <= ranks[name]
        assert rank is not None or ranks[name] is None
    assert budget.spent(best) <= budget.spent(ranks) <= budget.total
    assert budget.total - budget.spent(ranks) < 400 * 16  # not another rank fits


def test_each_layer_takes_its_smallest_cut() -> None:
    budget = Budget(0.5, {"a": (200, 200), "b": (200, 200)}, FactorStorage())
    cuts = [Candidate(1.0, "a", 0.4), Candidate(2.0, "a", 0.8), Candidate(3.0, "b", 0.6)]
    assert ranks_of(budget, cuts[:2]) == {"a": 40, "b": None}
    assert ranks_of(budget, cuts) == {"a": 40, "b": 60}


def test_what_the_cuts_leave_goes_to_the_most_sensitive() -> None:
    """Half of two (10, 30) matrices is rank 3 each, 240 numbers of 300; the 60 left buy one rank of 40."""
    budget = Budget(0.5, {"a": (10, 30), "b": (10, 30)}, FactorStorage())
    assert meet_budget(budget, [Candidate(1.0, "a", 0.5), Candidate(2.0, "b", 0.5)]) == {"a": 3, "b": 4}


def test_low_stable_rank_is_cut_first() -> None:
    """The reference cuts the flat spectrum first, which loses most."""
    steep, flat = torch.zeros(64), torch.ones(64)
    steep[0] = 1
    budget = Budget(0.7, {"steep": (64, 64), "flat": (64, 64)}, FactorStorage())
    ranks = Sensitivity(SensitivityMetric.stable_rank, CANDIDATES)(
        budget,
        Evidence(None, torch.zeros(1, 2), {"steep": steep, "flat": flat}, None),  # type: ignore[arg-type]
    )
    assert ranks == {"steep": 12, "flat": None}


@pytest.mark.parametrize("metric", SensitivityMetric)
def test_on_a_model(llama: PreTrainedModel, windows: torch.Tensor, metric: SensitivityMetric) -> None:
    result, _ = run(llama, windows, Sensitivity(metric, CANDIDATES, windows=2), 0.6)
    assert 0.6 * 0.99 < result.achieved_ratio <= 0.6


def test_perplexity_target_is_the_smallest_measured_model(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    dense = perplexity(llama, windows[:2]).value
    ask = Sensitivity(SensitivityMetric.ppl, CANDIDATES, windows=2, ppl_target=1.02 * dense)
    result, spy = run(llama, windows, ask, 0.999)
    assert spy.perplexity <= 1.02 * dense
    assert result.achieved_ratio < 1
    looser, _ = run(tiny_model("llama_gqa"), windows, replace(ask, ppl_target=1e6), 0.999)
    assert 0.36 < looser.achieved_ratio <= 0.4  # everything at the smallest candidate, rounded down


def test_an_unreachable_target_is_refused(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"method\.allocation\.ppl_target=1\.5 is below the perplexity"):
        run(llama, windows, Sensitivity(SensitivityMetric.ppl, CANDIDATES, windows=2, ppl_target=1.5), 0.5)


def test_the_target_is_the_whole_models_when_ranks_are_fixed(windows: torch.Tensor) -> None:
    """Rank 1 in every down_proj costs perplexity before any cut, on text that the dense model wrote itself."""
    writer = tiny_model("llama")
    writer.lm_head.weight.mul_(20)
    for block in writer.model.layers:
        block.mlp.down_proj.weight.mul_(100)
    start = windows[:, :1]
    torch.manual_seed(0)
    windows = writer.generate(start, attention_mask=torch.ones_like(start), max_length=24, do_sample=True)

    def perplexity_at(ranks: Ranks, target: float) -> float:
        model = copy.deepcopy(writer)
        ask = Sensitivity(SensitivityMetric.ppl, CANDIDATES, windows=2, ppl_target=target)
        method = Method("asvd", InputMoment(), ask, FactorStorage())
        compress(model, windows, method, 0.999, targets=Targets(ranks=ranks))
        return perplexity(model, windows[:2]).value

    fixed: Ranks = {"*.down_proj": 1}
    dense, uncut = perplexity(writer, windows[:2]).value, perplexity_at(fixed | {"*": None}, 1e6)
    assert uncut > 1.1 * dense
    assert uncut < perplexity_at(fixed, 1.1 * uncut) <= 1.1 * uncut < perplexity_at(fixed, 1e6)
    with pytest.raises(UserError, match="before any cut"):
        perplexity_at(fixed, (dense + uncut) / 2)


def test_dense_layers_come_back_after_an_error(llama: PreTrainedModel) -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    before = [llama.get_submodule(name) for name in names]

    def truncated(name: str, rank: int) -> torch.nn.Module:
        if name == names[1]:
            raise RuntimeError("no such layer")
        return torch.nn.Identity()

    evidence = Evidence(llama, torch.zeros(1, 2), {}, truncated)
    with pytest.raises(RuntimeError, match="no such layer"), truncated_layers(evidence, dict.fromkeys(names, 2)):
        pass
    assert [llama.get_submodule(name) for name in names] == before


def test_a_broken_truncation_is_infinitely_sensitive(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((*x.shape[:-1], 48), torch.nan)

    evidence = Evidence(llama, windows, {}, lambda name, rank: Broken())
    assert trial_perplexity(evidence, {"model.layers.0.mlp.up_proj": 2}, windows) == torch.inf


def test_perplexities_are_measured_once(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    """A second ratio finds every layer's perplexities where the first one left them."""
    method = Method("asvd", InputMoment(), Sensitivity(candidates=[0.5, 0.7], windows=1), FactorStorage())
    compress(llama, windows, method, 0.8, cache=Cache(tmp_path))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "sensitivity").rglob("*.safetensors")}
    assert len(written) == 3 * 7
    for path in list(written)[:2]:
        path.unlink()
    compress(tiny_model("llama_gqa"), windows, method, 0.6, cache=Cache(tmp_path))
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "sensitivity").rglob("*.safetensors")}
    assert now.keys() == written.keys()
    assert sum(now[path] != written[path] for path in written) == 2
