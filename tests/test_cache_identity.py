"""What a run finds in the cache is what it would have computed: whatever changes a result is in its identity."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdexp.allocation import Sensitivity, Uniform
from svdexp.cache import Cache
from svdexp.calibration import INPUT_STATISTICS
from svdexp.compress import compress
from svdexp.factorisation import Diagonal, FisherRows, Identity, InputMoment, TwoSided
from svdexp.factorisation.weighting import ChannelScale
from svdexp.method import Method
from svdexp.models.structure import Targets
from svdexp.schema import Numerics, Traversal
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
WEIGHTINGS = [
    *(InputMoment(), Identity(), TwoSided(), TwoSided(diagonal_left=True), FisherRows()),
    *(Diagonal(), Diagonal(alpha=1.0), Diagonal(scale=ChannelScale.abs_max), Diagonal(scale=ChannelScale.fisher)),
]


def weights(windows: torch.Tensor, method: Method, cache: Cache, ratio: float = 0.5) -> dict[str, torch.Tensor]:
    model = tiny_model("llama_gqa")
    compress(model, windows, method, ratio, cache=cache, targets=Targets(include=["*.0.*.q_proj", "*.1.*.up_proj"]))
    return dict(model.named_parameters())


def alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Up to the order of float32 additions: gradients are collected window by window, inputs in batches."""
    return all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)


@pytest.mark.parametrize("traversal", Traversal)
def test_no_weighting_meets_anothers_decompositions(
    windows: torch.Tensor, traversal: Traversal, tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    for weighting in WEIGHTINGS:
        if traversal is Traversal.blockwise and not INPUT_STATISTICS.keys() >= set(weighting.needs):
            continue  # gradients need the whole model
        method = replace(WHITENED, weighting=weighting, traversal=traversal)
        alone = weights(windows, method, Cache())
        assert alike(weights(windows, method, Cache(tmp_path)), alone), weighting
        assert not any(alike(other, alone) for other in seen), weighting
        seen.append(alone)


def test_no_numerics_meet_anothers_decompositions(windows: torch.Tensor, tmp_path: Path) -> None:
    """They agree up to rounding, so that only the folders tell them apart."""
    for count, numerics in enumerate(Numerics, start=1):
        weights(windows, replace(WHITENED, numerics=numerics), Cache(tmp_path))
        assert len(list((tmp_path / "decompositions").iterdir())) == count
    assert len(list((tmp_path / "statistics").iterdir())) == 1, "they share what was measured"


def test_blockwise_results_belong_to_their_ranks(windows: torch.Tensor, tmp_path: Path) -> None:
    method = replace(WHITENED, traversal=Traversal.blockwise)
    for ratio in (0.5, 0.4):
        alone = weights(windows, method, Cache(), ratio)
        assert alike(weights(windows, method, Cache(tmp_path), ratio), alone)


def test_no_sensitivity_meets_that_of_other_layers(windows: torch.Tensor, tmp_path: Path) -> None:
    """ASVD's trials are of the layers that its weighting makes."""
    method = replace(WHITENED, allocation=Sensitivity(candidates=[0.3, 0.6], windows=2))
    for count, weighting in enumerate((InputMoment(), Identity()), start=1):
        weights(windows, replace(method, weighting=weighting), Cache(tmp_path))
        assert len(list((tmp_path / "sensitivity").iterdir())) == count
