"""What the cache keeps is what its FORMAT stands for: other results under an old one would meet the files of before."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from svdexp.calibration import STATISTICS
from svdexp.runtime.shelves import FORMAT
from svdexp.schema import Numerics
from tests.support.mathematics import METHODS, WEIGHTINGS, Figures, everything, left_by, recorded, unlike

CONF = Path(__file__).parents[2] / "conf" / "method"
ANEW = "and record anew: python -m tests.support.mathematics"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def figures(cache: Path) -> Figures:
    return everything(cache)


def test_the_record_is_of_this_format() -> None:
    assert recorded()["format"] == FORMAT, f"FORMAT is another; see that only what should change does, {ANEW}"


def test_results_change_with_format_alone(figures: Figures) -> None:
    changed = unlike(
        figures, {key: figure for key, figure in recorded()["figures"].items() if key.split("/")[0] != "accuracy"}
    )
    assert not changed, f"these results are others: raise FORMAT in svdexp/runtime/shelves.py {ANEW}"


@pytest.mark.parametrize("numerics", [numerics for numerics in Numerics if numerics is not Numerics.eigh])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_numerics_finds_the_recorded_decompositions(
    name: str, numerics: Numerics, cache: Path, figures: Figures
) -> None:
    """`figures`, because the statistics that it leaves are read again; the papers' routes take others, too."""
    left = left_by(replace(METHODS[name], numerics=numerics), cache)
    found = {key: figure for key, figure in left.items() if not key.startswith("statistics/")}
    expected = {key: figures[f"{name}/{key}"] for key in found}
    assert found
    assert not unlike(found, expected), f"raise FORMAT in svdexp/runtime/shelves.py {ANEW}"


def test_every_statistic_weighting_training_and_finish_is_recorded() -> None:
    figures = recorded()["figures"]
    for statistic in STATISTICS:
        assert any(key.endswith(f"statistics/{statistic}") for key in figures), statistic
    for stored in ("gptq", "gptq_fitted", "awq"):
        assert f"{stored}/finished/out_codes" in figures
    recipes = list(METHODS.values())
    parts = [part for method in recipes for part in (method.weighting, *method.training.values())]
    choices = [path for folder in ("weighting", "training") for path in (CONF / folder).glob("*.yaml")]
    targets = [name for path in choices for name in re.findall(r"_target_: .*\.(\w+)", path.read_text())]
    assert len(targets) >= 8
    assert set(targets) <= {type(part).__name__ for part in parts}
