"""The local queue: never two cells on one device, whatever becomes of them."""

import itertools
import json
import re
from pathlib import Path

import pytest

from hydra_plugins.svdexp_sweeps.local_gpus import find_slots
from svdexp.runtime.errors import UserError
from tests.end_to_end.forked import Outcome, run

ROOT = Path(__file__).resolve().parents[2]


def sweep(folder: Path, *words: str, **variables: str) -> Outcome:
    return run(ROOT, ["-m", f"hydra.sweep.dir={folder}", *words], program="tests.cells.toy", **variables)


@pytest.mark.parametrize("launcher", ["basic", "local_gpus"])
def test_failing_cells_do_not_stop_the_others(launcher: str, tmp_path: Path) -> None:
    done = sweep(tmp_path, f"hydra/launcher={launcher}", "seed=1,2", "ratio=1,0.5", CUDA_VISIBLE_DEVICES="4,6")
    assert done.returncode == 1, done.stderr
    assert "svdexp: 2 of 4 cells failed, see failed.json in their folders" in done.stderr
    assert "RuntimeError: a defect" in done.stderr
    times = [json.loads(path.read_text()) for path in tmp_path.glob("*/times.json")]
    assert {time["slot"][0] for time in times} <= ({"4", "6"} if launcher == "local_gpus" else {"4,6"})
    assert len(times) == 2
    failures = [json.loads(path.read_text()) for path in tmp_path.glob("*/failed.json")]
    assert [failure["error"] for failure in failures] == ["RuntimeError: a defect"] * 2
    assert "in job" in failures[0]["traceback"]


def test_never_two_cells_in_one_slot(tmp_path: Path) -> None:
    words = ["hydra/launcher=local_gpus", "hydra.launcher.slots=2", "seed=1,2,7,3,4,5"]
    done = sweep(tmp_path, *words, OMP_NUM_THREADS="1")
    assert "svdexp: 1 of 6 cells failed" in done.stderr
    assert "was killed by signal 9; see " in done.stderr
    cells = [json.loads(path.read_text()) for path in tmp_path.glob("*/times.json")]
    assert len(cells) == 5
    for one, other, third in itertools.combinations(cells, 3):
        together = max(c["begin"] for c in (one, other, third)) < min(c["end"] for c in (one, other, third))
        assert not together, "three cells in two slots"
    assert all(cell["slot"] == ["", "1"] for cell in cells)
    # the launcher's own words: in each slot a cell ends before the next one starts, and both slots are used
    said = re.findall(r"CPU (\d) (starts|finished|failed)", done.stdout)
    for slot in "01":
        words = [word for where, word in said if where == slot]
        assert len(words) >= 4
        assert words[::2] == ["starts"] * (len(words) // 2)
        assert "starts" not in words[1::2]
    assert said[:2] == [("0", "starts"), ("1", "starts")] or said[:2] == [("1", "starts"), ("0", "starts")]


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0a,MIG-7")
    assert [slot.environment for slot in find_slots(None)] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-0a"},
        {"CUDA_VISIBLE_DEVICES": "MIG-7"},
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [slot.environment["OMP_NUM_THREADS"] for slot in find_slots(2)] == ["3", "3"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert {slot.environment["OMP_NUM_THREADS"] for slot in find_slots(10_000)} == {"1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"sees no GPU here; hydra\.launcher\.slots=N"):
        find_slots(None)
    with pytest.raises(UserError, match=r"hydra\.launcher\.slots must be at least 1, not 0"):
        find_slots(0)
