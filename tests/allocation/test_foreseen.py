"""What shapes and options alone rule out is said before anything is computed, and blamed on what is to blame."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import (
    Allocation,
    Budget,
    Dynamic,
    EffectiveRank,
    FromFile,
    FromGamma,
    GlobalLoss,
    Learned,
    Sensitivity,
    TruncationLoss,
    Uniform,
)
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage

CHOOSING = [Uniform(), GlobalLoss(), EffectiveRank(), TruncationLoss(), Dynamic(), Sensitivity(), Learned()]
SQUARE = {"a": (64, 64), "b": (128, 64)}


def method_of(allocation: Allocation) -> Method:
    return Method("some", InputMoment(), allocation, FactorStorage())


@pytest.mark.parametrize("allocation", CHOOSING, ids=lambda part: type(part).__name__)
def test_a_ratio_below_rank_one_is_refused_before_calibration(
    allocation: Allocation, llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"ratio=0\.01 .*(lowest rank|without a single rank)"):
        compress(llama, windows, method_of(allocation), 0.01, cache=Cache(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_target_perplexity_decides_the_size_by_itself() -> None:
    Sensitivity(ppl_target=99.0).require_room(Budget(0.001, SQUARE, FactorStorage()))


@pytest.mark.parametrize("part", [FromFile, FromGamma])
def test_files_are_read_before_calibration(
    part: type[FromFile] | type[FromGamma], llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"method\.allocation\.path=.*cannot be read"):
        compress(llama, windows, method_of(part(str(tmp_path / "none.json"))), 0.5, cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("allocation", [Uniform(rank_align=64), GlobalLoss(rank_align=64)], ids=str)
def test_multiples_that_leave_no_rank_are_named_as_the_cause(allocation: Uniform | GlobalLoss) -> None:
    """Rank 64 of (64, 64) is dearer than the whole; at rank 1 there is room."""
    with pytest.raises(UserError, match=r"rank_align=64 .*ratio=0\.6"):
        allocation.require_room(Budget(0.6, SQUARE, FactorStorage()))


@pytest.mark.parametrize("allocation", [Uniform(rank_align=2), GlobalLoss(rank_align=2)], ids=str)
def test_multiples_are_not_blamed_for_a_ratio_that_leaves_no_rank_either_way(allocation: Uniform | GlobalLoss) -> None:
    with pytest.raises(UserError, match=r"ratio=0\.001") as refusal:
        allocation.require_room(Budget(0.001, SQUARE, FactorStorage()))
    assert "rank_align" not in str(refusal.value)


@pytest.mark.parametrize(("align", "larger", "whole"), [(1, 0, 0), (8, 0, 0), (16, 0, 12), (17, 6, 6), (33, 21, 0)])
def test_matrices_that_multiples_do_not_fit_are_counted_once(
    align: int, larger: int, whole: int, llama: PreTrainedModel, windows: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a block's seven matrices k_proj and v_proj are (16, 32), the others at least 32 wide."""
    with caplog.at_level(logging.WARNING):
        compress(llama, windows, method_of(GlobalLoss(rank_align=align)), 0.9)
    sentences = [record.getMessage() for record in caplog.records if "rank_align" in record.getMessage()]
    expected = [f"is larger than {larger} of 21 matrices"] * bool(larger)
    expected += [f"keeps {whole} of 21 matrices"] * bool(whole)
    assert [words in sentence for words, sentence in zip(expected, sentences, strict=True)] == [True] * len(expected)
