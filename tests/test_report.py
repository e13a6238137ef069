"""The report reads what runs leave."""

import json
from pathlib import Path
from typing import Any

import pytest

from svdexp.errors import UserError
from svdexp.report import read, table


def leave(folder: Path, **figures: Any) -> None:
    folder.mkdir(parents=True)
    record = {"model": "m", "method": "svd", "storage": "factors", "achieved_ratio": 0.5, "peak_rss_bytes": 2e9}
    (folder / "results.json").write_text(json.dumps(record | figures))


def test_rows_are_sorted_and_missing_figures_blank(tmp_path: Path) -> None:
    leave(tmp_path / "a", ratio=0.4, **{"ppl/x": 30.123, "seconds/calibration": 1.6, "seconds/evaluate": 90})
    leave(tmp_path / "b", ratio=0.8, **{"ppl/y": 12.0})
    lines = table(read([tmp_path])).splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("| ppl/x | ppl/y | seconds to compress | peak RSS, GB |")
    assert lines[2].endswith("| 0.8 | 0.5 |  | 12 | 0 | 2.0 |")
    assert lines[3].endswith("| 0.4 | 0.5 | 30.12 |  | 2 | 2.0 |")


def test_nothing_to_report_and_damaged_records_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results\.json below"):
        read([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read([tmp_path])
