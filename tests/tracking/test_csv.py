"""tracker=csv: rows of many cells in one file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock, Timeout

from svdexp.runtime.clock import StageClock
from svdexp.tracking import CsvTracker, Findings, csv_tracker, tracked
from svdexp.tracking.csv_tracker import append

NOTHING: Any = None
ROW = {"name": "a", "block": 0, "projection": "up", "m": 4, "n": 4, "rank": 2, "energy_lost": 0.1}


def test_a_sweeps_runs_share_a_table(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    for run, ratio in (("one", 0.5), ("two, too", 0.25)):
        (tmp_path / run).mkdir()
        with tracked(CsvTracker(), NOTHING, tmp_path / run, "cell") as telling:
            with StageClock(telling.stage)("load"):
                pass
            assert "seconds/load" in read(tmp_path)[run]  # while it goes
            telling.findings(Findings({"ratio": ratio, "method": 'a "name"', "left_dense": {}}, [ROW]))
        assert telling.complete
    found = read(tmp_path)
    assert found["one"].keys() == {"seconds/load", "peak_rss_bytes/load", "ratio", "method"}
    assert (found["two, too"]["ratio"], found["two, too"]["method"]) == ("0.25", 'a "name"')
    assert not list(tmp_path.glob("*/figures.csv"))


def test_the_table_of_the_documentation_has_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("now", "a", "ratio", 0.5), ("now", "a", "method", "svd"), ("now", "a", "ratio", 1)]
    append(tmp_path / "figures.csv", rows)
    monkeypatch.chdir(tmp_path)
    lines = Path(__file__, "../../../docs/tracking.md").resolve().read_text().splitlines()
    found: dict[str, Any] = {"pandas": pd}
    exec("\n".join(line.strip() for line in lines if line.startswith(("    rows", "    table"))), found)
    assert found["table"].loc["a", "ratio"] == 1.0
    assert list(found["table"].columns) == ["ratio"]


def read(folder: Path) -> dict[str, dict[str, str]]:
    """By run and key the last value."""
    table = pd.read_csv(folder / "figures.csv", dtype=str)
    assert list(table.columns) == ["time", "run", "key", "value"]
    return {run: dict(zip(rows["key"], rows["value"], strict=True)) for run, rows in table.groupby("run")}


def test_rows_of_parallel_cells_stay_whole(tmp_path: Path) -> None:
    """Threads have locks of their own, as processes do, and start faster."""
    path, together = tmp_path / "figures.csv", Barrier(4)

    def write(run: int) -> None:
        together.wait()
        for number in range(20):
            append(path, [("now", f"run {run}", f"key {number}", number), ("now", f"run {run}", "long", "x" * 50_000)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    table = pd.read_csv(path)
    assert table["run"].value_counts().to_dict() == {f"run {run}": 40 for run in range(4)}
    assert set(table["value"].str.len()[table["key"] == "long"]) == {50_000}


def test_a_row_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    append(path, [("now", "one", "ratio", 0.5)])
    path.write_bytes(path.read_bytes() + b"now,one,ra")
    append(path, [("now", "two", "ratio", 0.25)])
    assert path.read_text().splitlines() == [
        "time,run,key,value",
        "now,one,ratio,0.5",
        "now,one,ra",
        "now,two,ratio,0.25",
    ]


def test_a_row_waits_for_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_tracker, "PATIENCE", 0.1)
    with FileLock(tmp_path / ".figures.csv.lock"), pytest.raises(Timeout):
        append(tmp_path / "figures.csv", [("now", "one", "ratio", 0.5)])
    assert not (tmp_path / "figures.csv").exists()
