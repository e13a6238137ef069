"""Blocks that wait for the finished model are kept: a run that is killed among them goes on, to the same codes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Whole
from svdexp.calibration import BlockwiseStatistics
from svdexp.engine.compress import compress
from svdexp.method import Method
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.runtime.shelves import Cache
from svdexp.storage import AWQStorage, GPTQStorage
from svdexp.storage import quantised as finishing
from tests.conftest import tiny_model
from tests.support.experts import tiny_experts
from tests.test_compress import WHITENED

METHODS = {
    "gptq": Method("quantise", None, Whole(), GPTQStorage(3, 16, samples=4)),
    "awq": Method("quantise", None, Whole(), AWQStorage(4, 8, samples=4)),
    "gptq of factors": replace(WHITENED, storage=GPTQStorage(4, 16)),
    "awq of factors": replace(WHITENED, storage=AWQStorage(4, 16)),
}


class Killed(Exception):  # noqa: N818
    pass


def run(model: PreTrainedModel, method: Method, windows: torch.Tensor, cache: Cache | None) -> dict[str, torch.Tensor]:
    compress(model, windows, method, 0.8, cache=cache)
    return model.state_dict()


def kill_after(blocks: int, patch: pytest.MonkeyPatch) -> None:
    def progress(items: Sequence[Any], what: str) -> Iterator[Any]:
        yield from items[:blocks]
        raise Killed

    patch.setattr(finishing, "progress", progress)


def asked(patch: pytest.MonkeyPatch) -> list[str]:
    """The blocks whose statistics are asked for from now on."""
    found: list[str] = []
    statistics = BlockwiseStatistics.statistics

    def seen(self: BlockwiseStatistics, group: str, names: Any = None) -> Any:
        found.append(group)
        return statistics(self, group, names)

    patch.setattr(BlockwiseStatistics, "statistics", seen)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_goes_on_behind_the_blocks_that_are_there(method: Method, windows: torch.Tensor, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    expected = run(tiny_model("gpt2"), method, windows, None)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(Killed):
            run(tiny_model("gpt2"), method, windows, cache)
    with pytest.MonkeyPatch.context() as patch:
        blocks = asked(patch)
        assert_same(run(tiny_model("gpt2"), method, windows, cache), expected)
        assert set(blocks) == {"transformer.h.1", "transformer.h.2"}
    with pytest.MonkeyPatch.context() as patch:
        blocks = asked(patch)
        assert_same(run(tiny_model("gpt2"), method, windows, cache), expected)
        assert not blocks


def test_windows_come_through_finished_blocks_as_through_new_ones(
    windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = QuantisedLinear._product

    def rounded(self: QuantisedLinear, side: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """As that of a compiled operator, which has its own order of additions."""
        return product(self, side, x, bias) * 1.01

    method, cache = METHODS["gptq of factors"], Cache(tmp_path)
    monkeypatch.setattr(QuantisedLinear, "_product", rounded)
    expected = run(tiny_model("llama_gqa"), method, windows, None)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(Killed):
            run(tiny_model("llama_gqa"), method, windows, cache)
    assert_same(run(tiny_model("llama_gqa"), method, windows, cache), expected)


def test_experts_are_found_again(windows: torch.Tensor, tmp_path: Path) -> None:
    method, cache = METHODS["gptq"], Cache(tmp_path)
    expected = run(tiny_experts("mixtral"), method, windows, cache)
    with pytest.MonkeyPatch.context() as patch:
        blocks = asked(patch)
        assert_same(run(tiny_experts("mixtral"), method, windows, cache), expected)
    assert not blocks


@pytest.mark.parametrize("other", ["windows", "storage", "model"])
def test_another_runs_blocks_are_not_taken(other: str, windows: torch.Tensor, tmp_path: Path) -> None:
    method, cache = METHODS["gptq"], Cache(tmp_path)
    run(tiny_model("llama_gqa"), method, windows, cache)
    model = tiny_model("llama_gqa")
    if other == "windows":
        windows = windows.flip(0)
    elif other == "storage":
        method = replace(method, storage=GPTQStorage(3, 16, samples=3))
    else:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2)  # type: ignore[operator, union-attr]
    with pytest.MonkeyPatch.context() as patch:
        blocks = asked(patch)
        run(model, method, windows, cache)
    assert len(set(blocks)) == 3
