"""The closed-form refit against numpy's least squares, and its place in the engine."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from svdexp.engine.compress import compress
from svdexp.models.factors import Factors
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets, find_matrices
from svdexp.storage import ResidualStorage, Storage
from svdexp.update import RefitOutput
from svdexp.update.refit import Refit, refit
from tests.calibration.test_statistics import recorded_moments
from tests.conftest import tiny_model
from tests.test_compress import WHITENED


@pytest.mark.parametrize("tokens", [200, 6, 3])
def test_refit_is_least_squares(tokens: int) -> None:
    """A = argmin ‖W X − A (B X)‖, one least-squares problem per row; with few tokens, the minimum-norm solution."""
    generator = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((7, 12), (7, 4), (4, 12)))
    X = torch.randn(12, tokens, generator=generator, dtype=torch.float64)
    found = refit(W, Factors(A, B), X @ X.T / tokens)
    expected, *_ = np.linalg.lstsq((B @ X).T.numpy(), (W @ X).T.numpy(), rcond=None)
    np.testing.assert_allclose(found.A.numpy(), expected.T, rtol=1e-6, atol=1e-8)
    assert torch.equal(found.B, B)


def test_refit_lowers_the_error_on_the_compressed_path(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """Layer by layer, refitted factors are stationary: refitting them again on the final path's inputs, which for
    the layers before are the same, changes nothing."""
    dense = {layer.name: layer for layer in find_matrices(model, Targets())}
    weights = {name: module_weight(model, name).clone() for name in dense}
    result = compress(model, windows, replace(WHITENED, update=RefitOutput(samples=6)), 0.5)
    moments = recorded_moments(model, list(dense), windows)
    for name, rank in result.ranks.items():
        if rank is None:
            continue
        layer = model.get_submodule(name)
        again = refit(weights[name], Factors(layer.rank_out.weight, layer.rank_in.weight), moments[name])
        C, W, B = moments[name], weights[name].double(), again.B
        error = lambda A, C=C, W=W, B=B: torch.trace((W - A @ B) @ C @ (W - A @ B).T)  # noqa: E731
        assert error(layer.rank_out.weight.double()) <= error(again.A) * (1 + 1e-2) + 1e-6


def module_weight(model: PreTrainedModel, name: str) -> torch.Tensor:
    return LINEAR.weight(model.get_submodule(name))


@pytest.mark.parametrize(
    ("name", "storage"),
    [("opt", WHITENED.storage), ("llama", ResidualStorage(3, 8))],  # whose layers are buffers and nothing else
)
def test_ranks_and_size_stay_what_they_were(name: str, storage: Storage, windows: torch.Tensor) -> None:
    method = replace(WHITENED, storage=storage)
    plain = compress(tiny_model(name), windows, method, 0.5)
    refitted = compress(tiny_model(name), windows, replace(method, update=RefitOutput()), 0.5)
    assert plain.ranks == refitted.ranks
    assert plain.bits == refitted.bits


def test_inputs_are_those_of_so_many_windows(windows: torch.Tensor) -> None:
    group, moments = "model.layers.0", []
    for samples, given in ((2, windows), (6, windows[:2]), (6, windows)):
        model = tiny_model("llama_gqa")
        layers = [layer for layer in find_matrices(model, Targets()) if layer.group == group]
        repair: Any = RefitOutput(samples).start(model, layers, given, {})
        moments.append(repair.path.statistics(group, [layers[0].name])[layers[0].name]["gram"])
    torch.testing.assert_close(moments[0], moments[1])
    assert not torch.allclose(moments[0], moments[2])


def test_what_got_no_token_stays_as_truncated(caplog: pytest.LogCaptureFixture) -> None:
    """Least squares on no data would give zeros."""

    tried: set[str] = set()

    class Path:
        def sharing(self, group: str) -> list[list[str]]:
            return [["idle", "busy"]]

        def statistics(self, group: str, names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
            assert tried == {"idle", "busy"}, "inputs are those behind truncated layers, in whatever order they run"
            return {"idle": {"gram": torch.zeros(5, 5)}, "busy": {"gram": torch.eye(5)}}

    W, pair = torch.randn(4, 5), Factors(torch.randn(4, 2), torch.randn(2, 5))
    placed: dict[str, Factors] = {}

    def place(name: str, factors: Factors, *, trial: bool = False) -> None:
        placed.pop(name, None)  # what is placed on trial alone does not stand at the end
        if trial:
            tried.add(name)
        else:
            placed[name] = factors

    repair: Any = Refit(Path())  # type: ignore[arg-type]
    repair("block", {"idle": W, "busy": W}, {"idle": pair, "busy": pair}, place)
    assert placed["idle"] is pair
    assert placed["busy"] is not pair
    assert "idle was given no token" in caplog.text
