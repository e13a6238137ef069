"""Ranks fixed by pattern: which layers they reach, what they leave, and every allocation around them."""

from pathlib import Path

import pytest

from svdexp.allocation import Allocation, Budget, Evidence, FromFile, Uniform, allocate, fixed_ranks
from svdexp.models.matrices import Ranks
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, PivotStorage, Storage
from tests.allocation.test_allocation import NOTHING, budget
from tests.allocation.test_promises import ALLOCATIONS, SHAPES, evidence

__all__ = ["evidence"]  # a fixture

SMALL = {"0.q": (10, 10), "0.down": (10, 30), "1.q": (10, 10), "1.down": (10, 30)}


def test_the_first_pattern_that_matches_wins() -> None:
    assert fixed_ranks({"1.*": None, "*.down": 7}, SMALL) == {"0.down": 7, "1.q": None, "1.down": None}
    assert fixed_ranks({"*.down": 7, "1.*": None}, SMALL) == {"0.down": 7, "1.q": None, "1.down": 7}
    assert fixed_ranks({}, SMALL) == {}


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ({"*.up": 3}, r"no layer to compress matches '\*\.up'"),
        ({"*.down": 0}, r"0\.down of shape \(10, 30\) takes a rank from 1 to 10, not 0"),
        ({"*": 11}, r"0\.q of shape \(10, 10\) takes a rank from 1 to 10, not 11"),
    ],
)
def test_mistakes_name_the_knob(patterns: Ranks, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"targets\.ranks: {sentence}"):
        fixed_ranks(patterns, SMALL)


def test_the_others_share_what_is_left() -> None:
    """Half of 800 numbers is 400; down at 4 costs 4 · 40 = 160, so 240 of the other 500 remain: 0.48."""
    offer = budget(0.5, **SMALL)
    rest = offer.without({"0.down": 4})
    assert rest.ratio == 240 / 500
    assert list(rest.shapes) == ["0.q", "1.q", "1.down"]
    assert rest.total == pytest.approx(240 * 16)
    # ⌊0.48 · 100 / 20⌋ = 2 twice and ⌊0.48 · 300 / 40⌋ = 3 make 200; the 40 left buy a rank more for both squares.
    assert allocate(Uniform(), offer, {"0.down": 4}, NOTHING)[0] == {"0.q": 3, "0.down": 4, "1.q": 3, "1.down": 3}


def test_what_fixed_layers_save_cannot_buy_more_than_dense() -> None:
    rest = budget(0.9, **SMALL).without({"0.down": 1, "1.down": 1})  # 720 − 80 for the 200 of two squares
    assert rest.ratio == 1
    assert Uniform()(rest, NOTHING) == {"0.q": None, "1.q": None}


def test_ranks_that_leave_nothing_are_refused() -> None:
    offer = budget(0.5, **SMALL)
    with pytest.raises(UserError, match=r"targets\.ranks alone keep 0\.7500, .* ratio=0\.5"):
        offer.without({"0.down": None, "1.down": None})
    with pytest.raises(UserError, match=r"targets\.ranks alone keep 0\.5000"):  # 10 · 40 numbers, 0 left
        offer.without({"0.down": 10})
    with pytest.raises(UserError, match=r"ratio=0\.14 \(all that targets\.ranks leave .*\) leaves 0\.q"):
        allocate(Uniform(), budget(0.47, **SMALL), {"0.down": None, "1.q": 1}, NOTHING)


def test_all_layers_may_be_fixed() -> None:
    """There is no allocation to ask: the one given would fail."""
    ranks: Ranks = {"0.q": 1, "0.down": 2, "1.q": None, "1.down": 3}
    assert allocate(FromFile("nowhere"), budget(0.5, **SMALL), ranks, NOTHING)[0] == ranks
    with pytest.raises(UserError, match=r"targets\.ranks"):
        allocate(FromFile("nowhere"), budget(0.3, **SMALL), ranks, NOTHING)


def test_a_rank_that_saves_nothing_is_kept() -> None:
    """Rank 9 of (10, 10) costs 180 numbers, dense 100."""
    assert allocate(Uniform(), budget(0.9, **SMALL), {"0.q": 9}, NOTHING)[0]["0.q"] == 9


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda a: type(a).__name__)
def test_every_allocation_fills_what_is_left(
    allocation: Allocation, ratio: float, storage: Storage, evidence: Evidence
) -> None:
    whole = Budget(ratio, SHAPES, storage)
    fixed = fixed_ranks({"blocks.0.*": None, "*.down_proj": 300, "*.7.q_proj": 576}, SHAPES)
    ranks = allocate(allocation, whole, fixed, evidence)[0]
    assert list(ranks) == list(SHAPES)
    assert len(fixed) == 7 + 29 + 1
    assert {name: ranks[name] for name in fixed} == fixed
    spent = sum(whole.bits(name, rank) for name, rank in ranks.items())
    dense = sum(m * n * 16 for m, n in SHAPES.values())
    assert ratio * 0.998 <= spent / dense <= ratio


def test_a_file_of_ranks_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    path.write_text('{"0.q": 1, "0.down": 2, "1.q": 1, "1.down": 3}')
    replay, offer = FromFile(str(path)), budget(0.5, **SMALL)
    expected: Ranks = {"0.q": 1, "0.down": 4, "1.q": 1, "1.down": 3}
    assert allocate(replay, offer, {"0.down": 4}, NOTHING)[0] == expected
    with pytest.raises(UserError, match=r"ratio=0\.22 \(all that targets\.ranks leave to the other layers\)"):
        allocate(replay, budget(0.3375, **SMALL), {"0.down": 4}, NOTHING)
