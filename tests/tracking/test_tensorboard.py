"""tracker=tensorboard, read back by TensorBoard."""

from pathlib import Path
from typing import Any

import pytest

from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.tracking import Findings, TensorBoardTracker, tensorboard_tracker, tracked

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
NOTHING: Any = None
CURVE = [[0, None, 9.0], [5, 2.0, 8.0]]
FOUND = {"model": "tiny", "method": "svd", "ratio": 0.5, "ppl/files": 7.5, "left_dense": {}, "cell": "c", "params": 3}
FOUND |= {"training": {"distill": {"name": "distill", "options": {}, "tokens": 3, "curve": CURVE}}}
FOUND |= {"seconds/load": 2.0, "storage": "factors", "weighting": None, "ppl/broken": float("nan")}
ROWS = [
    {"name": f"m.{block}.up", "block": block, "projection": "up", "m": 4, "n": 4, "rank": 2 + block, "energy_lost": 0.1}
    for block in range(2)
]


def test_what_a_run_tells_is_there(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    with tracked(TensorBoardTracker(), NOTHING, tmp_path, "cell") as telling:
        with StageClock(telling.stage)("load"):
            pass
        live = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert set(live.Tags()["scalars"]) == {"seconds/load", "peak_rss_bytes/load"}
        telling.findings(Findings(FOUND, ROWS, learned={"ratio": [0.7, 0.5]}))
    assert telling.complete
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def line(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in found.Scalars(tag)]

    assert line("training/distill/held_out") == [(0, 9.0), (5, 8.0)]
    assert line("training/distill/loss") == [(5, 2.0)]
    assert line("depth/rank/up") == [(0, 2.0), (1, 3.0)]
    assert [step for step, _ in line("learned_ranks/ratio")] == [0, 1]
    assert [value for _, value in line("ppl/files")] == [7.5]
    assert "ppl/broken" not in found.Tags()["scalars"]
    assert found.Tags()["images"] == ["rank_map"]
    assert found.Images("rank_map")[0].width > 100
    said = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    chosen = HParamsPluginData.FromString(said).session_start_info.hparams
    assert {key: value.string_value or value.number_value for key, value in chosen.items()} == {
        **{"model": "tiny", "method": "svd", "ratio": 0.5, "storage": "factors"}
    }


def test_without_the_package_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_tracker, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"tracker=tensorboard needs .* pip install 'svdexp\[tensorboard\]'"):
        TensorBoardTracker()
