"""The engine's contract, on every architecture."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Evidence, Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import Identity, InputMoment
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.hooks import input_hooks, submodules
from svdexp.models.matrices import Ranks
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, PivotStorage, Storage
from tests.conftest import tiny_model

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())


@dataclass(frozen=True)
class FullRank:
    """Every layer at full rank, whatever the budget."""

    needs_spectra: ClassVar[bool] = False

    def __call__(self, budget: Budget, evidence: Evidence) -> Ranks:
        return {name: min(shape) for name, shape in budget.shapes.items()}


@pytest.mark.parametrize(
    ("weighting", "traversal"),
    [(Identity(), Traversal.dense), (InputMoment(), Traversal.dense), (InputMoment(), Traversal.blockwise)],
)
def test_full_rank_is_the_identity(
    model: PreTrainedModel, windows: torch.Tensor, weighting: object, traversal: Traversal
) -> None:
    before = model(windows).logits
    compress(model, windows, Method("full", weighting, FullRank(), FactorStorage(), traversal=traversal), 1.0)
    assert sum(isinstance(module, LowRankLinear) for module in model.modules()) >= 12
    torch.testing.assert_close(model(windows).logits, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("traversal", Traversal)
def test_achieved_ratio_is_counted_and_never_above_the_request(
    model: PreTrainedModel, windows: torch.Tensor, traversal: Traversal
) -> None:
    names = [layer.name for layer in find_matrices(model, Targets())]
    dense = sum(model.get_submodule(name).weight.numel() for name in names)
    result = compress(model, windows, replace(WHITENED, traversal=traversal), 0.6)
    kept = sum(
        p.numel()
        for name in names
        for key, p in model.get_submodule(name).named_parameters()
        if not key.endswith("bias")
    )
    assert result.achieved_ratio == pytest.approx(kept / dense)
    assert 0.59 < result.achieved_ratio <= 0.6
    assert result.ranks.keys() == set(names)
    assert torch.isfinite(model(windows).logits).all()


def test_ratio_one_leaves_the_model_alone(model: PreTrainedModel, windows: torch.Tensor) -> None:
    before = model(windows).logits
    result = compress(model, windows, WHITENED, 1.0)
    assert set(result.ranks.values()) == {None}
    assert result.achieved_ratio == 1
    assert torch.equal(model(windows).logits, before)


def test_whitening_loses_the_least_of_the_calibration_outputs(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """By Eckart and Young outputs Y = X Wᵀ lose at least Σ_{i>r} σᵢ²(Y); plain SVD loses more."""
    inputs: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in find_matrices(model, Targets())}
    with input_hooks(submodules(model, inputs), lambda name, x: inputs[name].append(x.double().flatten(0, -2))):
        model(windows)
    dense = {name: LINEAR.weight(model.get_submodule(name)).double() for name in inputs}
    other = copy.deepcopy(model)
    plain = compress(other, windows, replace(WHITENED, weighting=Identity()), 0.5)
    white = compress(model, windows, WHITENED, 0.5)
    assert plain.ranks == white.ranks
    for name, W in dense.items():
        X = torch.cat(inputs[name])
        energy = torch.linalg.svdvals(X @ W.T).square()
        least = float(energy[white.ranks[name] :].sum())

        def lost(of: PreTrainedModel, name: str = name, W: torch.Tensor = W, X: torch.Tensor = X) -> float:
            return float((X @ (W - LINEAR.weight(of.get_submodule(name)).double()).T).square().sum())

        assert lost(model) == pytest.approx(least, rel=1e-4), name
        assert lost(other) > 1.1 * least, name
        # a share of the whole that second moments summed in float32 know to some 1e-6
        assert white.errors[name] == pytest.approx(least / float(energy.sum()), rel=1e-3, abs=1e-5), name


def test_biases_move_to_the_output_side(windows: torch.Tensor) -> None:
    model = tiny_model("opt")
    before = model.model.decoder.layers[0].fc1.bias.clone()
    compress(model, windows, WHITENED, 0.5)
    layer = model.model.decoder.layers[0].fc1
    assert isinstance(layer, LowRankLinear)
    assert layer.rank_in.bias is None
    assert torch.equal(layer.rank_out.bias, before)


def test_the_head_can_be_compressed(windows: torch.Tensor) -> None:
    for traversal in Traversal:
        model = tiny_model("llama")
        result = compress(model, windows, replace(WHITENED, traversal=traversal), 0.5, targets=Targets(lm_head=True))
        assert isinstance(model.lm_head, LowRankLinear)
        assert result.ranks["lm_head"] == 12  # 0.5 · 96 · 32 / (96 + 32)


@pytest.mark.parametrize("traversal", Traversal)
def test_finished_stages_are_reused(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, traversal: Traversal
) -> None:
    method = replace(WHITENED, traversal=traversal)
    compress(llama, windows, method, 0.5, cache=Cache(tmp_path))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = tiny_model("llama_gqa")
    compress(again, windows, method, 0.5, cache=Cache(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written
    for (name, first), (_, second) in zip(llama.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("traversal", Traversal)
def test_an_interrupted_run_continues_to_the_same_model(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, traversal: Traversal
) -> None:
    method = replace(WHITENED, traversal=traversal)
    compress(llama, windows, method, 0.5, cache=Cache(tmp_path))
    stage = "decompositions" if traversal is Traversal.dense else "blockwise"
    (lost,) = (tmp_path / stage).glob("*/model.layers.1.safetensors")
    lost.unlink()
    again = tiny_model("llama_gqa")
    compress(again, windows, method, 0.5, cache=Cache(tmp_path))
    for (name, first), (_, second) in zip(llama.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
@pytest.mark.parametrize("traversal", Traversal)
def test_fixed_ranks_are_kept_and_counted(
    llama: PreTrainedModel, windows: torch.Tensor, traversal: Traversal, storage: Storage
) -> None:
    """16, the full rank of v_proj (16, 32), costs more than dense in factors; it is stored all the same."""
    names = [layer.name for layer in find_matrices(llama, Targets())]
    dense = sum(llama.get_submodule(name).weight.numel() for name in names)
    method = replace(WHITENED, traversal=traversal, storage=storage)
    targets = Targets(ranks={"model.layers.0.*": None, "*.v_proj": 16, "*.down_proj": 5})
    result = compress(llama, windows, method, 0.7, targets=targets)
    assert {name for name, rank in result.ranks.items() if rank is None} >= {n for n in names if ".0." in n}
    assert [result.ranks[f"model.layers.{i}.self_attn.v_proj"] for i in range(3)] == [None, 16, 16]
    assert [result.ranks[f"model.layers.{i}.mlp.down_proj"] for i in range(3)] == [None, 5, 5]
    # numbers, and indices of 16 bits, which count as much
    kept = sum(t.numel() for name in names for t in llama.get_submodule(name).state_dict().values())
    assert 0.69 < kept / dense <= 0.7
    assert result.achieved_ratio == pytest.approx(kept / dense)
    assert torch.isfinite(llama(windows).logits).all()


def test_fixed_ranks_share_statistics_and_decompositions(windows: torch.Tensor, tmp_path: Path) -> None:
    compress(tiny_model("llama_gqa"), windows, WHITENED, 0.5, cache=Cache(tmp_path))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    targets = Targets(ranks={"*.up_proj": 3})
    compress(tiny_model("llama_gqa"), windows, WHITENED, 0.5, cache=Cache(tmp_path), targets=targets)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


@pytest.mark.parametrize("ranks", [{"*.no_such_layer": 3}, {"*.up_proj": 33}, {"*": None}])
def test_fixed_ranks_are_checked_before_calibration(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, ranks: Ranks
) -> None:
    with pytest.raises(UserError, match=r"targets\.ranks"):
        compress(llama, windows, WHITENED, 0.5, cache=Cache(tmp_path), targets=Targets(ranks=ranks))
    assert not list(tmp_path.iterdir())


def test_another_model_or_text_never_meets_this_cache(windows: torch.Tensor, tmp_path: Path) -> None:
    compress(tiny_model("llama_gqa"), windows, WHITENED, 0.5, cache=Cache(tmp_path))
    other = tiny_model("llama_gqa")
    other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    compress(other, windows, WHITENED, 0.5, cache=Cache(tmp_path))
    compress(tiny_model("llama_gqa"), windows.flip(0), WHITENED, 0.5, cache=Cache(tmp_path))
    turned = tiny_model("llama_gqa")
    turned.config.rope_parameters = {**turned.config.rope_parameters, "rope_theta": 5.0}
    compress(turned, windows, WHITENED, 0.5, cache=Cache(tmp_path))
    assert len(list((tmp_path / "statistics").iterdir())) == 2 * 4, "C of some layers, W C Wᵀ of others"


def test_corrupt_cache_files_are_named_and_computed_again(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the middle of the model, where a naive repair would see blocks that are compressed already."""
    compress(llama, windows, WHITENED, 0.5, cache=Cache(tmp_path))
    victims = [
        path for stage in ("statistics", "decompositions") for path in (tmp_path / stage).glob("*/model.layers.1.*")
    ]
    assert len(victims) == 3
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:100])
    again = tiny_model("llama_gqa")
    compress(again, windows, WHITENED, 0.5, cache=Cache(tmp_path))
    assert all(f"{victim} is damaged" in caplog.text for victim in victims)
    for (name, first), (_, second) in zip(llama.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(first, second), name


def test_a_ratio_too_small_for_a_layer_names_it(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"ratio=0\.01 leaves model\.layers\.0\.self_attn\.q_proj"):
        compress(llama, windows, WHITENED, 0.01)
