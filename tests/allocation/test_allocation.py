"""Allocations against hand-computed cases, and the budget's promises."""

import json
from pathlib import Path

import pytest

from svdexp.allocation import Budget, Evidence, FromFile, Uniform
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage

# Evidence for allocations that look at none.
NOTHING = Evidence(None, None, {}, None)  # type: ignore[arg-type]


def budget(ratio: float, **shapes: tuple[int, int]) -> Budget:
    return Budget(ratio, shapes, FactorStorage())


def test_uniform_rank_is_the_published_formula() -> None:
    """⌊0.5 · 4096 · 4096 / 8192⌋ = 1024 exactly; ⌊0.5 · 11008 · 4096 / 15104⌋ = 1492, and 1493 would not fit."""
    assert Uniform()(budget(0.5, q=(4096, 4096)), NOTHING) == {"q": 1024}
    assert Uniform()(budget(0.5, up=(11008, 4096)), NOTHING) == {"up": 1492}


def test_uniform_spends_what_rounding_left() -> None:
    """A (10, 30) matrix at 0.65 may spend 195 numbers, 35 more than rank 4 costs, and a rank costs 40.

    Eight of them have 280 numbers left over, which is seven more ranks.
    """
    ranks = Uniform()(budget(0.65, **{f"layer{i}": (10, 30) for i in range(8)}), NOTHING)
    assert sorted(filter(None, ranks.values())) == [4] + [5] * 7


def test_what_is_left_goes_to_who_is_furthest_below_its_share() -> None:
    """60 numbers are left: a has 200 of its 300, b, whose rank costs these 60, 300 of its 800."""
    offer = budget(561 / 1100, a=(10, 30), b=(20, 40))
    assert offer.fill({"a": 5, "b": 5}) == {"a": 5, "b": 6}
    assert offer.fill({"a": 5, "b": 5}, ["a", "b"]) == {"a": 6, "b": 5}, "unless an order is given"


def test_what_is_left_goes_round_again() -> None:
    """150 numbers are left: a rank of 40 for each of two, then a second one for the first."""
    assert budget(391 / 600, a=(10, 30), b=(10, 30)).fill({"a": 3, "b": 3}, ["b", "a"]) == {"a": 4, "b": 5}


def test_what_rounding_left_goes_where_it_took_most() -> None:
    """For the tenth rank of x, 100 numbers, 60 do not do: they buy one of 40 where 5.8 became 5, not where 3.2 did 3.

    Although z has less of its share, and comes first.
    """
    offer = budget(1280.5 / 2200, z=(10, 30), x=(20, 80), y=(10, 30))
    assert offer.fit({"z": 3.2, "x": 10, "y": 5.8}) == {"z": 3, "x": 9, "y": 6}


@pytest.mark.parametrize("ratio", [0.2, 0.37, 0.5, 0.8, 0.99])
def test_budget_is_met_within_two_permille(ratio: float) -> None:
    shapes = {
        f"{i}.{name}": s for i in range(12) for name, s in (("q", (576, 576)), ("k", (192, 576)), ("up", (1536, 576)))
    }
    offer = budget(ratio, **shapes)
    spent = offer.spent(Uniform()(offer, NOTHING)) / sum(map(offer.dense, shapes))
    assert ratio * 0.998 <= spent <= ratio


def test_dense_where_a_rank_saves_nothing() -> None:
    assert Uniform()(budget(1.0, q=(8, 8)), NOTHING) == {"q": None}


def test_not_even_one_rank() -> None:
    with pytest.raises(UserError, match=r"ratio=0\.1 leaves q of shape \(4, 4\)"):
        Uniform()(budget(0.1, q=(4, 4)), NOTHING)


def test_ranks_replay_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    offer = budget(0.5, q=(64, 64), up=(96, 64))
    ranks = Uniform()(offer, NOTHING)
    path.write_text(json.dumps(ranks))
    assert FromFile(str(path))(offer, NOTHING) == ranks


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "cannot be read"),
        ("[3]", "is not an object"),
        ('{"q": 0}', "positive ranks"),
        ('{"q": true}', "positive ranks"),
        ('{"other": 3}', "layers differ, first at other"),
        ('{"q": 65}', "rank 65 is too large for q"),
        ('{"q": 30}', "more than ratio=0.5"),
    ],
)
def test_bad_rank_files_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "ranks.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"method\.allocation\.path=.*{sentence}"):
        FromFile(str(path))(budget(0.5, q=(64, 64)), NOTHING)
