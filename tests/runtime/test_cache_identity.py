"""What a run finds in the cache is what it would have computed: whatever changes a result is in its identity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from svdexp.allocation import Sensitivity, Uniform
from svdexp.calibration import of_backward
from svdexp.engine.compress import compress
from svdexp.factorisation import Diagonal, FisherRows, Identity, InputMoment, TwoSided
from svdexp.factorisation.weighting import ChannelScale, Metric, Statistics
from svdexp.method import Method
from svdexp.models.structure import Targets
from svdexp.runtime.shelves import FORMAT, Cache, fingerprint, identity
from svdexp.schema import Numerics, Traversal
from svdexp.storage import FactorStorage, RTNStorage
from svdexp.training import BlockRefine
from tests.conftest import tiny_model

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
WEIGHTINGS = [
    *(InputMoment(), Identity(), TwoSided(), TwoSided(diagonal_left=True), FisherRows()),
    *(Diagonal(), Diagonal(alpha=1.0), Diagonal(scale=ChannelScale.abs_max), Diagonal(scale=ChannelScale.fisher)),
]


TARGETS = ("*.0.*.q_proj", "*.1.*.up_proj")


def weights(
    windows: torch.Tensor, method: Method, cache: Cache, ratio: float = 0.5, include: Sequence[str] = TARGETS
) -> dict[str, torch.Tensor]:
    model = tiny_model("llama_gqa")
    compress(model, windows, method, ratio, cache=cache, targets=Targets(include=include))
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
        inputs_alone = weighting.needs and not of_backward(weighting.needs)
        if traversal is Traversal.blockwise and not inputs_alone:
            continue  # gradients need the whole model, and without statistics there is nothing to traverse for
        method = replace(WHITENED, weighting=weighting, traversal=traversal)
        alone = weights(windows, method, Cache())
        assert alike(weights(windows, method, Cache(tmp_path)), alone), weighting
        assert not any(alike(other, alone) for other in seen), weighting
        seen.append(alone)


@dataclass(frozen=True)
class Scaled:
    """A weighting whose scale lies in a file."""

    file: Path
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def files_read(self) -> Sequence[Path]:
        return [self.file]

    def __call__(self, statistics: Statistics) -> Metric:
        gram = statistics["gram"]
        return Metric(right=gram + float(self.file.read_text()) * gram.diagonal().diag())


@pytest.mark.parametrize("traversal", Traversal)
def test_no_weighting_meets_what_another_content_of_its_file_made(
    windows: torch.Tensor, traversal: Traversal, tmp_path: Path
) -> None:
    method = replace(WHITENED, weighting=Scaled(tmp_path / "scale"), traversal=traversal)
    for scale in ("0", "9"):
        (tmp_path / "scale").write_text(scale)
        alone = weights(windows, method, Cache())
        assert alike(weights(windows, method, Cache(tmp_path)), alone), scale


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


def test_trained_factors_belong_to_those_that_training_starts_from(windows: torch.Tensor, tmp_path: Path) -> None:
    method = replace(WHITENED, training={"block_refine": BlockRefine(steps=1, batch=2)})
    for ratio, weighting in ((0.5, InputMoment()), (0.4, InputMoment()), (0.5, Identity())):
        other = replace(method, weighting=weighting)
        alone = weights(windows, other, Cache(), ratio)
        assert alike(weights(windows, other, Cache(tmp_path), ratio), alone), (ratio, weighting)


def test_no_sensitivity_meets_that_of_other_layers(windows: torch.Tensor, tmp_path: Path) -> None:
    """ASVD's trials are of the layers that its weighting and numerics make and its storage holds."""
    method = replace(WHITENED, allocation=Sensitivity(candidates=[0.3, 0.6], windows=2))
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"weighting": Identity()},
        {"numerics": Numerics.double_svd},
        {"storage": RTNStorage(8)},
    )
    for count, change in enumerate(changes, start=1):
        weights(windows, replace(method, **change), Cache(tmp_path))
        assert len(list((tmp_path / "sensitivity").iterdir())) == count


def test_layers_of_a_block_that_were_no_targets_are_computed(windows: torch.Tensor, tmp_path: Path) -> None:
    weights(windows, WHITENED, Cache(tmp_path), include=["*.0.*.q_proj"])
    both = ["*.0.*.q_proj", "*.0.*.up_proj"]
    found = weights(windows, WHITENED, Cache(tmp_path), include=both)
    assert alike(found, weights(windows, WHITENED, Cache(), include=both))


def test_equal_bytes_of_another_format_shape_or_name_are_other_tensors() -> None:
    zeros = torch.zeros(4)
    others = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}]
    assert len({fingerprint(tensors) for tensors in others}) == len(others)
    assert fingerprint({"a": zeros}) == fingerprint({"a": torch.zeros(4)})


def test_another_mathematics_forgets_what_an_older_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what raising FORMAT is for."""
    Cache(tmp_path).shelf("stage", a=1).put("item", {"x": torch.ones(1)})
    assert Cache(tmp_path).shelf("stage", a=1).get("item") is not None
    monkeypatch.setattr("svdexp.runtime.shelves.FORMAT", FORMAT + 1)
    assert Cache(tmp_path).shelf("stage", a=1).get("item") is None


def test_another_mathematics_changes_no_identity_that_records_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a report would take one model for two, and a sweep would compute finished cells again."""
    monkeypatch.setattr("svdexp.runtime.shelves.FORMAT", FORMAT + 1)
    assert identity(a=1) == "979c53d0625f7ed84508"
