"""What is no longer needed does not stay in memory."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from svdexp.allocation import Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.factorisation.decompose import decompose
from svdexp.factorisation.weighting import Metric
from svdexp.method import Method
from svdexp.models.factors import Factors
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.runtime.shelves import Cache
from svdexp.schema import Traversal
from svdexp.storage import FactorStorage, Kept, Storage
from tests.conftest import tiny_model


@pytest.fixture(autouse=True)
def _only_new_objects() -> Iterator[None]:
    """To the garbage collector, so that looking at all of them takes no seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held_bytes() -> int:
    """Of all new tensors that are alive; what several of them view counts once."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True)
class Watched(Storage):
    """Plain factors, which note what is held when each is made."""

    seen: ClassVar[list[int]] = []

    def bits(self, rank: int, m: int, n: int) -> int:
        return FactorStorage().bits(rank, m, n)

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> LowRankLinear:
        self.seen.append(held_bytes())
        return FactorStorage().layer(factors, bias, like)


@pytest.mark.parametrize("traversal", Traversal)
def test_a_block_that_is_truncated_leaves_nothing_of_its_decomposition(
    windows: torch.Tensor, tmp_path: Path, traversal: Traversal
) -> None:
    """What the compressed layers take is less than what the dense ones took, so memory falls from block to block."""
    method = Method("svd_llm", InputMoment(), Uniform(), Watched(), traversal=traversal)
    compress(tiny_model("llama_gqa"), windows, method, 0.4, cache=Cache(tmp_path))  # fills the cache
    Watched.seen.clear()
    compress(tiny_model("llama_gqa"), windows, method, 0.4, cache=Cache(tmp_path))
    blocks = [Watched.seen[start : start + 7] for start in (0, 7, 14)]
    assert [len(block) for block in blocks] == [7, 7, 7]
    assert max(blocks[0]) > max(blocks[1]) > max(blocks[2])


def test_kept_components_are_no_views() -> None:
    part = decompose(torch.randn(6, 9), Metric(), dtype=torch.float32)
    for kept in (part.keep(2), part.keep(0)):
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in (kept.left, kept.right))
        assert torch.equal(kept.spectrum, part.spectrum)
    assert torch.equal(part.keep(2).left @ part.keep(2).right, part.left[:, :2] @ part.right[:2])
