"""No tracker kills a run; figures over depth are counted right."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb

from svdexp.allocation import RankCurves
from svdexp.runtime.errors import UserError
from svdexp.tracking import Findings, WandbTracker, complete, tracked, wandb_tracker
from svdexp.tracking.depth import CURVE_POINTS, SPECTRUM_POINTS, gamma_rows, mean_gamma, over_depth, spectrum_rows
from svdexp.tracking.layers import place
from svdexp.tracking.wandb_tracker import sweep_of
from tests.tracking.wandb_file import Tracked

NOTHING: Any = None


class Broken:
    """A tracker whose methods from `first` on all fail."""

    def __init__(self, first: str) -> None:
        self.calls: list[str] = []
        self.failing = ["start", "log", "finish"][["start", "log", "finish"].index(first) :]

    def do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.failing:
            raise RuntimeError(f"{what} went\nwrong")

    def start(self, config: object, run_dir: object) -> "Broken":
        self.do("start")
        return self

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
    with caplog.at_level(logging.WARNING), tracked(tracker, NOTHING, Path()) as track:
        track(NOTHING)
    assert tracker.calls == calls
    assert caplog.messages == [f"tracker: RuntimeError: {first} went wrong; the run goes on without it"]


def test_a_failing_run_is_tracked_as_failed() -> None:
    tracker = Broken("finish")
    tracker.failing = []
    with pytest.raises(ZeroDivisionError), tracked(tracker, NOTHING, Path()):
        raise ZeroDivisionError
    assert tracker.calls == ["start", "finish False"]


@pytest.mark.parametrize(("first", "left"), [(None, False), ("start", True), ("log", True), ("finish", True)])
def test_what_the_tracker_was_not_told_stays(first: str | None, left: bool, tmp_path: Path) -> None:
    tracker = Broken(first or "finish")
    tracker.failing = tracker.failing if first else []
    Findings({}, []).leave(tmp_path)
    with tracked(tracker, NOTHING, tmp_path):
        pass  # of a sibling, which tells nothing
    assert (tmp_path / "untracked.json").exists()
    with tracked(tracker, NOTHING, tmp_path) as track:
        track(Findings({}, []))
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"project": "a/b"}, r"tracker\.project=a/b is not taken by W&B: .*cannot contain"),
        ({"project": "p" * 129}, r"tracker\.project=p+ is not taken by W&B: .*128"),
        ({"tags": ["fine", "t" * 65]}, r"tracker\.tags=.* is not taken by W&B: .*between 1 and 64"),
        ({"tags": [""]}, r"tracker\.tags=.* is not taken by W&B: .*between 1 and 64"),
    ],
)
def test_what_wandb_does_not_take_is_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        WandbTracker(**options)


def test_long_names_are_shortened_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / f"{'m' * 190}_0123abcd"
    run_dir.mkdir()
    method, model = SimpleNamespace(name="s" * 65), SimpleNamespace(name="m" * 190)
    monkeypatch.setattr(wandb_tracker, "asdict", vars)
    config: Any = SimpleNamespace(method=method, model=model)
    WandbTracker(tags=["night"]).start(config, run_dir).finish(True)
    wandb.teardown()  # its service writes the last lines a moment later
    run = Tracked(run_dir).run
    assert list(run.tags) == ["s" * 64, "m" * 64, "night"]
    assert run.display_name.startswith("mmm")
    assert run.display_name.endswith("m_0123abcd")
    assert len(run.display_name) == 128


def test_wandb_refuses_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    config: Any = SimpleNamespace(method=SimpleNamespace(name="svd"), model=SimpleNamespace(name="tiny"))
    with caplog.at_level(logging.WARNING, "svdexp"), tracked(WandbTracker(), config, tmp_path) as track:
        track(NOTHING)
    assert [message.partition(": ")[0] for message in caplog.messages] == ["tracker"]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_offline_unless_there_is_a_key(variables: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert WandbTracker().resolved_mode() == mode


def test_the_sweep_is_the_folder_that_hydra_wrote(tmp_path: Path) -> None:
    for sweep, name in (("grid", "grid"), ("2026-01-31/10-20-30", "2026-01-31/10-20-30")):
        cell = tmp_path / sweep / "0_cell"
        cell.mkdir(parents=True)
        assert sweep_of(cell) is None
        (cell.parent / "multirun.yaml").touch()
        assert sweep_of(cell) == name


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
