"""What a storage wants decomposed of W, and what it gets back: W' = Q + A B, here with Q the signs of W, scaled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from svdexp.allocation import Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import Identity, InputMoment
from svdexp.method import Method
from svdexp.models.factors import Factors
from svdexp.models.families import LINEAR
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, Kept, PivotStorage, Storage
from svdexp.training import BlockRefine
from svdexp.update import IPCA
from tests.conftest import tiny_model


@dataclass(frozen=True)
class Signs(Storage):
    """Q = step · sign(W), and a dense layer of Q + A B."""

    step: float = 0.02

    def bits(self, rank: int, m: int, n: int) -> int:
        return m * n + rank * (m + n) * 16

    def target(
        self, W: torch.Tensor, C: torch.Tensor | None = None, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept | None]:
        Q = self.step * W.sign()
        return W - Q, {"Q": Q}

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> nn.Module:
        assert kept is not None
        layer = nn.Linear(like.shape[1], like.shape[0], bias is not None)
        layer.weight.data = (kept["Q"] + factors.A @ factors.B).to(like.dtype)
        if bias is not None:
            layer.bias.data = bias.detach()
        return layer


@dataclass(frozen=True)
class Listening(Uniform):
    """Tries every layer at rank 3."""

    tried: dict[str, torch.Tensor] = field(default_factory=dict)
    needs_spectra: ClassVar[bool] = True

    def __call__(self, budget: Any, evidence: Any) -> Any:
        self.tried.update({name: evidence.truncated(name, 3).weight.detach() for name in budget.shapes})
        return super().__call__(budget, evidence)


@dataclass(frozen=True)
class Noting:
    """An update that places what truncation found, and notes which weights it was given."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    makes_factors: ClassVar[bool] = False

    def start(self, model: Any, layers: Sequence[Any], windows: torch.Tensor, ranks: Any) -> Any:
        def repair(group: str, weights: Mapping[str, torch.Tensor], factors: Mapping[str, Factors], place: Any) -> None:
            self.weights.update({name: W.clone() for name, W in weights.items()})
            for name, pair in factors.items():
                place(name, pair)

        return repair


SPLIT = Method("svd", Identity(), Uniform(), Signs())


def optimum(rest: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, Vt = torch.linalg.svd(rest.double(), full_matrices=False)
    return ((U[:, :rank] * S[:rank]) @ Vt[:rank]).float()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_the_rest_is_decomposed_and_what_was_kept_comes_back(name: str, windows: torch.Tensor) -> None:
    dense, model, update = tiny_model(name), tiny_model(name), Noting()
    done = compress(model, windows, replace(SPLIT, allocation=Listening(), update=update), 0.5)
    assert update.weights.keys() == {layer for layer, rank in done.ranks.items() if rank}
    for layer, rank in done.ranks.items():
        W, module = LINEAR.weight(dense.get_submodule(layer)), model.get_submodule(layer)
        Q = 0.02 * W.sign()
        assert rank is not None
        torch.testing.assert_close(LINEAR.weight(module) - Q, optimum(W - Q, rank), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(done.spectra[layer].float(), torch.linalg.svdvals(W - Q), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(update.weights[layer], W - Q)


def test_an_allocation_tries_the_whole_layer(windows: torch.Tensor) -> None:
    dense, allocation = tiny_model("llama_gqa"), Listening()
    compress(tiny_model("llama_gqa"), windows, replace(SPLIT, allocation=allocation), 0.5)
    for name, found in allocation.tried.items():
        W = LINEAR.weight(dense.get_submodule(name))
        Q = 0.02 * W.sign()
        torch.testing.assert_close(found, Q + optimum(W - Q, 3), atol=1e-5, rtol=1e-4)


def test_storages_of_all_of_w_share_decompositions(windows: torch.Tensor, tmp_path: Path) -> None:
    """And a part of W has its own, one for every part."""
    counts = []
    for storage in (FactorStorage(), PivotStorage(), Signs(), Signs(0.01), Signs()):
        compress(tiny_model("llama_gqa"), windows, replace(SPLIT, storage=storage), 0.5, cache=Cache(tmp_path))
        counts.append(len(list((tmp_path / "decompositions").iterdir())))
    assert counts == [1, 1, 2, 3, 3]
    assert replace(SPLIT, storage=PivotStorage()).decomposition.keys() == {"weighting", "numerics"}


def test_inputs_of_compressed_blocks_decompose_the_rest_too(windows: torch.Tensor) -> None:
    """The first layers' inputs are the dense model's, so they come out alike."""
    method = replace(SPLIT, weighting=InputMoment())
    layers = []
    for traversal in Traversal:
        model = tiny_model("llama_gqa")
        compress(model, windows, replace(method, traversal=traversal), 0.5)
        layers.append(LINEAR.weight(model.model.layers[0].self_attn.q_proj))
    torch.testing.assert_close(*layers, atol=1e-5, rtol=1e-4)


def test_what_makes_factors_of_all_of_w_is_refused() -> None:
    for part, knob in (
        ({"weighting": None, "update": IPCA()}, r"method\.update"),
        ({"training": {"it": BlockRefine()}}, r"method\.training"),
    ):
        with pytest.raises(UserError, match=rf"storage=Signs has factors of a part of each matrix, but {knob} fits"):
            replace(SPLIT, **part)  # type: ignore[arg-type]


def test_what_waits_keeps_nothing_beside_its_factors() -> None:
    with pytest.raises(TypeError, match="Both waits for the finished model"):

        class Both(Storage):
            waits: ClassVar[bool] = True

            def target(
                self, W: torch.Tensor, C: torch.Tensor | None = None, kept: Kept | None = None
            ) -> tuple[torch.Tensor, Kept | None]:
                return W, {"Q": W}
