"""Figures print as a run's console prints them, and are numbers all the same."""

import math

import pandas as pd

from svdexp.door.figures import Figures, side_by_side

MEASURED = {
    "ppl/pydoc": 12.85924,
    "ppl_stderr/pydoc": 0.51,
    "acc/arc_easy": 0.435,
    "params": 134515008,
    "bytes": 2.69e8,
}


def words(shown: object) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in repr(shown).splitlines()]


def test_figures_of_one_model() -> None:
    found = Figures(MEASURED)
    assert words(found) == [
        ["ppl/pydoc", "12.86"],
        ["ppl_stderr/pydoc", "0.5100"],
        ["acc/arc_easy", "0.4350"],
        ["params", "134,515,008"],
        ["bytes", "269.0 MB"],
    ]
    assert found["ppl/pydoc"] == 12.85924
    assert type(2 * found) is pd.Series


def test_two_models_side_by_side() -> None:
    dense = {"ppl/pydoc": 10.0, "params": 200000000, "bytes": 5.38e8}
    found = side_by_side(MEASURED | {"ppl/ptb": math.nan}, dense)
    assert [" ".join(line.split()) for line in repr(found).splitlines()] == [
        "dense compressed factor stderr",
        "ppl/pydoc 10.00 12.86 1.286 0.5100",
        "acc/arc_easy 0.4350",
        "params 200,000,000 134,515,008 0.673",
        "bytes 538.0 MB 269.0 MB 0.500",
        "ppl/ptb nan",
    ]
    assert "<td>12.86</td>" in found._repr_html_()
    assert found["factor"]["ppl/pydoc"] == 1.285924
    assert type(found[found["factor"] > 1]) is pd.DataFrame


def test_a_column_of_nothing_is_left_out() -> None:
    assert list(side_by_side({"ppl/x": 3.0}, {})) == ["compressed"]
