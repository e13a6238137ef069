"""The axis of blocks, as it is drawn."""

import re

import pandas as pd
import pytest

from svdexp.report.depth import error_by_depth
from svdexp.report.style import styles
from svdexp.report.vega import svg


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_every_block_stands_once_below_a_short_model(blocks: int) -> None:
    rows = pd.DataFrame({"ratio": [0.8], "series": ["kron"], "folder": ["run"], "run": [1]})
    layers = {"run": [{"block": block, "energy_lost": 0.01 * (block + 1)} for block in range(blocks)]}
    plot = error_by_depth(rows, layers, styles([("kron", "kron")]))
    assert plot is not None
    drawn = svg(plot)
    below = re.search(r'aria-label="X-axis titled \'block\'.*?>block<', drawn, re.DOTALL)
    assert below is not None
    assert re.findall(r">(-?\d+)</text>", below[0]) == [str(block) for block in range(blocks)]
    assert set(re.findall(r'<line [^>]* opacity="([^"]*)"', drawn)) <= {"0", "1"}  # no fainter than the look has lines
