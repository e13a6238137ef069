"""tracker=wandb with the real client: what it is told, where it goes, and what becomes of it without a server."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.tracking import Findings, WandbTracker, tracked, wandb_tracker
from svdexp.tracking.wandb_tracker import WandbMode, sweep_of
from tests.tracking.conftest import forget_wandb
from tests.tracking.wandb_file import Tracked
from tests.tracking.wandb_server import KEY, NOBODY, Server, serving

CELL = "0123456789abcdef0123"
NETRC = f"machine api.wandb.ai\n  login user\n  password {KEY}\n"
FOUND: dict[str, Any] = {"method": "svd", "ratio": 0.5, "training": {}, "ppl/files": 7.5}
ROW = {"name": "a", "block": 0, "projection": "up", "m": 4, "n": 4, "rank": 2, "energy_lost": 0.1}


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a folder without anything of W&B's, and W&B as if it had just been imported."""
    home = tmp_path / "home"
    home.mkdir()
    forget_wandb(monkeypatch, home, tmp_path)
    monkeypatch.setattr(wandb_tracker, "asdict", vars)
    wandb.teardown()
    yield home
    wandb.teardown()


@pytest.fixture
def config() -> Any:
    return SimpleNamespace(method=SimpleNamespace(name="svd"), model=SimpleNamespace(name="tiny"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "grid" / "tiny_svd_0.5"
    folder.mkdir(parents=True)
    (folder / "ranks.json").write_text("{}")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield found
        wandb.teardown()


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
    config: Any = SimpleNamespace(method=method, model=model)
    WandbTracker(tags=["night"]).start(config, run_dir, CELL).finish(True)
    wandb.teardown()  # its service writes the last lines a moment later
    run = Tracked(run_dir).run
    assert list(run.tags) == ["s" * 64, "m" * 64, "night"]
    assert run.display_name.startswith("mmm")
    assert run.display_name.endswith("m_0123abcd")
    assert len(run.display_name) == 128


def test_wandb_refuses_and_the_run_goes_on(
    config: Any, run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with tracked(WandbTracker(), config, run_dir, CELL) as telling:
        telling.findings(Findings(FOUND, [ROW]))
    assert [message.partition(": ")[0] for message in ours(caplog)] == ["tracker"]


def test_the_sweep_is_the_folder_that_hydra_wrote(tmp_path: Path) -> None:
    for sweep, name in (("grid", "grid"), ("2026-01-31/10-20-30", "2026-01-31/10-20-30")):
        cell = tmp_path / sweep / "0_cell"
        cell.mkdir(parents=True)
        assert sweep_of(cell) is None
        (cell.parent / "multirun.yaml").touch()
        assert sweep_of(cell) == name


@pytest.mark.parametrize(
    ("files", "variables", "mode", "reason"),
    [
        ({}, {}, "offline", "because there is no login (`wandb login`)"),
        ({}, {"WANDB_API_KEY": KEY}, "online", ""),
        ({"home/.netrc": NETRC}, {}, "online", ""),
        ({"elsewhere": NETRC}, {"NETRC": "elsewhere"}, "online", ""),
        ({"home/.netrc": NETRC}, {"WANDB_BASE_URL": "https://wandb.example.com"}, "offline", "because there is no"),
        ({"home/.netrc": NETRC}, {"WANDB_MODE": "offline"}, "offline", "as it was told"),
        ({"home/.netrc": NETRC, "wandb/settings": "[default]\nmode = offline\n"}, {}, "offline", "as it was told"),
        ({"home/.netrc": NETRC, "home/.config/wandb/settings": "[default]\nmode = offline\n"}, {}, "offline", "as it"),
        ({"wandb/settings": f"[default]\napi_key = {KEY}\n"}, {}, "online", ""),
        ({}, {"WANDB_MODE": "disabled"}, "disabled", "as it was told"),
        ({}, {"WANDB_MODE": "online"}, "offline", "because there is no login"),
        ({}, {"WANDB_API_KEY": "short"}, "offline", "because the login is not valid (WANDB_API_KEY invalid"),
    ],
)
def test_online_where_there_is_a_login(
    files: dict[str, str], variables: dict[str, str], mode: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, why = WandbTracker().settled_mode()
    assert (found, why[: len(reason)]) == (mode, reason)


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [(WandbMode.online, KEY, "online"), (WandbMode.online, "", "offline"), (WandbMode.offline, KEY, "offline")],
)
def test_our_mode_comes_before_w_and_bs(
    mode: WandbMode, key: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline" if mode is WandbMode.online else "online")
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert WandbTracker(mode=mode).settled_mode()[0] == expected


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What svdexp said."""
    return [message for name, _, message in caplog.record_tuples if name.startswith("svdexp")]


def failing_run(config: Any, run_dir: Path, server: Server) -> StageClock:
    """A run that fails once the server has what its first stage took: the clock of it."""
    with suppress(ZeroDivisionError), tracked(WandbTracker(), config, run_dir, CELL) as telling:
        clock = StageClock(telling.stage)
        with clock("load"):
            pass
        while CELL not in server.history:  # sent while the run goes, at W&B's own pace
            time.sleep(0.1)
        raise ZeroDivisionError
    return clock


def test_a_run_is_seen_while_it_goes_and_goes_on_when_it_is_tried_again(
    config: Any, run_dir: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Under one id; its history grows and nothing of it is lost."""
    caplog.set_level(logging.INFO, "svdexp")
    url = f"{server.url}/me/svdexp/runs/{CELL}"
    clock = failing_run(config, run_dir, server)
    assert server.exits == {CELL: 1}
    (first,) = server.history[CELL]
    assert first["seconds/load"] == clock.seconds["load"]
    assert first["peak_rss_bytes/load"] == clock.rss["load"]
    with tracked(WandbTracker(), config, run_dir, CELL) as telling:
        with StageClock(telling.stage)("save"):
            pass
        telling.findings(Findings(FOUND, [ROW]))
    assert [row["_step"] for row in server.history[CELL]] == list(range(len(server.history[CELL])))
    assert server.history[CELL][0] == first
    assert "seconds/save" in server.history[CELL][1]
    assert server.summaries[CELL]["ppl/files"] == 7.5
    assert server.exits == {CELL: 0}
    assert list(server.runs) == [CELL]
    assert ours(caplog) == [f"W&B: {url}", f"W&B: {url}"]


def test_a_server_that_does_not_answer_leaves_the_run_offline(
    config: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_tracker, "SECONDS_TO_BEGIN", 1.0)
    with tracked(WandbTracker(), config, run_dir, CELL) as telling:
        telling.findings(Findings(FOUND, [ROW]))
    assert telling.complete
    assert telling.url is None
    wandb.teardown()
    assert Tracked(run_dir).summary["ppl/files"] == 7.5
    (message,) = ours(caplog)
    assert message.startswith("W&B: offline, because it cannot be reached (")
    assert message.endswith("; `python -m svdexp.tracking.sync grid/tiny_svd_0.5` sends it")


def test_what_an_agent_calls_its_run_stays(
    config: Any, run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_PROJECT", "shared")
    with tracked(WandbTracker(), config, run_dir, CELL) as telling:
        pass
    assert telling.url == f"{server.url}/me/shared/runs/theirs"


def test_disabled_is_nothing(config: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracked(WandbTracker(), config, run_dir, CELL) as telling:
        telling.findings(Findings(FOUND, [ROW]))
    assert telling.complete
    assert telling.url is None
    assert not list(run_dir.glob("wandb/*run*"))
