"""No tracker kills a run; figures over depth are counted right."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from svdexp.allocation import RankCurves
from svdexp.record import Results
from svdexp.runtime.clock import StageClock
from svdexp.tracking import Findings, complete, tracked, tracker
from svdexp.tracking.depth import CURVE_POINTS, SPECTRUM_POINTS, gamma_rows, mean_gamma, over_depth, spectrum_rows
from svdexp.tracking.layers import place

NOTHING: Any = None
CELL = "0123456789abcdef0123"
STEPS = ["start", "stages", "log", "finish"]


class Broken:
    """A tracker whose methods from `first` on all fail."""

    url = "https://there"

    def __init__(self, first: str) -> None:
        self.calls: list[str] = []
        self.figures: list[Results] = []
        self.failing = STEPS[STEPS.index(first) :]

    def do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.failing:
            raise RuntimeError(f"{what} went\nwrong")

    def start(self, config: object, run_dir: object, cell: str) -> "Broken":
        self.do("start")
        return self

    def stages(self, figures: Results) -> None:
        self.do("stages")
        self.figures.append(figures)

    def log(self, findings: object) -> None:
        self.do("log")

    def finish(self, succeeded: bool) -> None:
        self.do(f"finish {succeeded}" if "finish" not in self.failing else "finish")


@pytest.mark.parametrize(
    ("first", "calls"),
    [("start", ["start"]), ("log", ["start", "log", "finish"]), ("finish", ["start", "log", "finish"])],
)
def test_a_failing_tracker_is_one_line_and_the_run_goes_on(
    first: str, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Broken(first)
    with caplog.at_level(logging.WARNING), tracked(tracker, NOTHING, Path(), CELL) as telling:
        telling.findings(NOTHING)
    assert tracker.calls == calls
    assert caplog.messages == [f"tracker: RuntimeError: {first} went wrong; the run goes on without it"]


def test_stages_are_told_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed, at most once a second, and the rest with the results."""
    now = 100.0
    monkeypatch.setattr(tracker.time, "monotonic", lambda: now)
    session = Broken("finish")
    session.failing = []
    with tracked(session, NOTHING, Path(), CELL) as telling:
        assert telling.url == "https://there"
        clock = StageClock(telling.stage)
        for stage, later in (("load", 0.0), ("usage", 0.9), ("calibration", 0.2)):
            now += later
            with clock(stage):
                pass
        with clock("save"):
            pass
        telling.findings(NOTHING)
    told = [[key.partition("/") for key in figures] for figures in session.figures]
    assert [[stage for head, _, stage in row if head == "seconds"] for row in told] == [
        *(["load"], ["usage", "calibration"], ["save"])
    ]
    assert all(
        figures[f"peak_rss_bytes/{stage}"]
        for figures, stage in zip(session.figures, ["load", "usage", "save"], strict=True)
    )
    assert session.calls == ["start", "stages", "stages", "stages", "log", "finish True"]


def test_a_tracker_that_fails_at_a_stage_is_told_no_more_of_them(caplog: pytest.LogCaptureFixture) -> None:
    session = Broken("stages")
    session.failing = ["stages"]
    with tracked(session, NOTHING, Path(), CELL) as telling:
        clock = StageClock(telling.stage)
        for stage in ("load", "usage"):
            with clock(stage):
                pass
        telling.findings(NOTHING)
    assert session.calls == ["start", "stages", "log", "finish True"]
    assert caplog.messages == ["tracker: RuntimeError: stages went wrong; the run goes on without it"]


def test_a_failing_run_is_tracked_as_failed() -> None:
    tracker = Broken("finish")
    tracker.failing = []
    with pytest.raises(ZeroDivisionError), tracked(tracker, NOTHING, Path(), CELL):
        raise ZeroDivisionError
    assert tracker.calls == ["start", "finish False"]


@pytest.mark.parametrize(("first", "left"), [(None, False), ("start", True), ("log", True), ("finish", True)])
def test_what_the_tracker_was_not_told_stays(first: str | None, left: bool, tmp_path: Path) -> None:
    tracker = Broken(first or "finish")
    tracker.failing = tracker.failing if first else []
    Findings({}, []).leave(tmp_path)
    with tracked(tracker, NOTHING, tmp_path, CELL):
        pass  # of a sibling, which tells nothing
    assert (tmp_path / "untracked.json").exists()
    with tracked(tracker, NOTHING, tmp_path, CELL) as telling:
        telling.findings(Findings({}, []))
    assert (tmp_path / "untracked.json").exists() == left


def test_findings_come_back(tmp_path: Path) -> None:
    found = Findings({"ratio": 0.5}, [{"name": "a"}], [["a", 1, 2.0, 0.5]], {"perplexity": [3.0]}, [["a", 0, 1.5]])
    (tmp_path / "results.json").write_text(json.dumps(found.results))
    (tmp_path / "layers.json").write_text(json.dumps(found.layers))
    found.leave(tmp_path)
    assert Findings.left_in(tmp_path) == found


@pytest.mark.parametrize("content", ["{", '{"spectra": [], "other": []}'])
def test_findings_that_cannot_be_read_are_one_line(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Broken("finish")
    (tmp_path / "untracked.json").write_text(content)
    complete(tracker, NOTHING, tmp_path)
    assert [message.partition(": ")[0] for message in caplog.messages] == ["tracker"]
    assert tracker.calls == []


def test_places_in_the_model() -> None:
    assert place("m.layers.3.mlp.up", "m.layers.3") == {"block": 3, "projection": "mlp.up"}
    assert place("m.layers.3.experts.12.up", "m.layers.3") == {"block": 3, "projection": "experts.*.up"}
    assert place("lm_head", "lm_head") == {"block": None, "projection": "lm_head"}


def test_lines_over_depth() -> None:
    def row(block: int | None, rank: int | None, lost: float | None) -> dict[str, Any]:
        return {"block": block, "projection": "up", "m": 6, "n": 4, "rank": rank, "energy_lost": lost}

    rows = [row(1, 3, 0.5), row(0, None, 0.0), row(1, 1, 0.3), row(None, 2, 0.1)]
    assert over_depth(rows, "rank") == {"up": [(0, 4), (1, 2)]}
    assert over_depth(rows, "energy_lost") == {"up": [(0, 0.0), (1, 0.4)]}
    assert over_depth([row(0, 1, None)], "energy_lost") == {}


def test_spectra_and_curves_are_thinned() -> None:
    rows = spectrum_rows({"a": torch.tensor([2.0, 1.0]), "b": torch.arange(500, 0, -1.0)})
    assert rows[:2] == [["a", 1, 2.0, pytest.approx(0.2)], ["a", 2, 1.0, 0.0]]
    of_b = [row for row in rows if row[0] == "b"]
    assert 20 < len(of_b) <= SPECTRUM_POINTS
    assert of_b[-1] == ["b", 500, 1.0, 0.0]

    steps = [float(step) for step in range(300)]
    curves = RankCurves(steps, steps, {"a": steps, "b": [3 * step for step in steps]})
    thinned = gamma_rows(curves)
    assert len(thinned) == 2 * CURVE_POINTS
    assert thinned[CURVE_POINTS - 1] == ["a", 299, 299.0]
    assert mean_gamma(curves, {"a": "up", "b": "up"}) == {"up": [2 * step for step in steps]}
