"""What a run tells of its stages."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from svdexp.runtime.clock import StageClock
from svdexp.schema import Save, Traversal
from svdexp.tracking.narration import Narration, narrate


def method(**parts: Any) -> Any:
    usual = {"weighting": SimpleNamespace(needs=("gram",)), "update": None, "training": {}}
    return SimpleNamespace(**usual | {"traversal": Traversal.dense} | parts)


def told(narration: Narration, steps: Sequence[tuple[str, Mapping[str, float]]], log: Any) -> list[str]:
    """The lines of a run whose stages begin with these seconds spent; the last has no stage any more."""
    with log.at_level("INFO", "svdexp"):
        for stage, seconds in steps:
            if stage:
                narration.begins(stage, seconds)
            else:
                narration.ends(seconds)
    return [record.message for record in log.records]


def test_stages_are_numbered_as_they_end(caplog: pytest.LogCaptureFixture) -> None:
    narration = narrate(method(), Save.none)
    assert narration.order == [
        *("load", "evaluate_dense", "usage", "calibration", "factorisation", "allocation", "storage", "evaluate")
    ]
    narration.expected = {"evaluate_dense": 58.0, "factorisation": 9.0, "allocation": 0.2}
    seconds = {"load": 0.5, "evaluate_dense": 62.0, "usage": 2.0}
    more = {**seconds, "factorisation": 4.0, "allocation": 0.1, "storage": 3.0}
    lines = told(
        narration,
        [
            ("load", {}),
            ("evaluate_dense", {"load": 0.5}),
            ("usage", {"load": 0.5, "evaluate_dense": 62.0}),
            ("factorisation", seconds),
            ("calibration", {**seconds, "factorisation": 1.0}),
            ("elsewhere", {}),
            ("evaluate", more),
            ("", {**more, "evaluate": 8.0}),
        ],
        caplog,
    )
    assert lines == [
        "[1/8] loading … < 1 s",
        "[2/8] dense model evaluated … 62 s (estimated 58 s)",
        "[3/8] layers watched at work … 2.0 s",
        "[4/8] calibration … nothing to do",
        "[5/8] factorisation … 4.0 s (estimated 9.0 s)",
        "[6/8] allocation … < 1 s",
        "[7/8] storage … 3.0 s",
        "[8/8] compressed model evaluated … 8.0 s",
        "done in 80 s (estimated 67 s)",
    ]


def test_stages_that_alternate_end_together(caplog: pytest.LogCaptureFixture) -> None:
    narration = narrate(method(traversal=Traversal.blockwise, update=object(), training={"distill": 1}), Save.hf)
    assert narration.order[3:9] == ["calibration", "factorisation", "allocation", "update", "training", "storage"]
    steps = [(stage, {}) for stage in ("calibration", "factorisation", "update", "storage", "calibration", "update")]
    lines = told(narration, steps, caplog)
    assert [line for line in lines if "update" in line or "calibration" in line] == []
    caplog.clear()
    lines = told(narration, [("training", {"calibration": 3.0, "factorisation": 4.0, "update": 5.0})], caplog)
    assert lines == ["[4/11] calibration … 3.0 s", "[5/11] factorisation … 4.0 s", "[7/11] update … 5.0 s"]


def test_factors_stand_before_they_are_trained(caplog: pytest.LogCaptureFixture) -> None:
    narration = narrate(method(training={"distill": 1}), Save.none)
    steps = [("storage", {}), ("training", {"storage": 1.0}), ("storage", {"storage": 1.0, "training": 5.0})]
    assert not [line for line in told(narration, steps, caplog) if "training" in line or "storage" in line]
    caplog.clear()
    lines = told(narration, [("evaluate", {"storage": 2.0, "training": 5.0})], caplog)
    assert lines == ["[7/9] training … 5.0 s", "[8/9] storage … 2.0 s"]


def test_a_clock_tells_what_begins() -> None:
    heard: list[str] = []
    clock = StageClock(began=lambda stage, seconds: heard.append(f"{stage} {sorted(seconds)}"))
    with clock("outer"), clock("inner"):
        pass
    assert heard == ["outer []", "inner ['outer']"]
