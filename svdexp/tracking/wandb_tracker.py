"""tracker=wandb: one Weights & Biases run per cell, online where there is a login; docs/tracking.md lists its content.

wandb is imported when a run starts, so that nobody else waits for it.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from svdexp.record import Results
from svdexp.record.results import TRAINING
from svdexp.runtime.errors import UserError
from svdexp.runtime.invocation import command
from svdexp.schema import Config
from svdexp.tracking.depth import over_depth
from svdexp.tracking.findings import Findings
from svdexp.tracking.none import NoTracker
from svdexp.tracking.pictures import rank_picture
from svdexp.tracking.places import sweep_folder, to_sync

log = logging.getLogger(__name__)

LONGEST_TAG, LONGEST_NAME = 64, 128  # letters; W&B takes no run with more
OPTIONS = {"project": "project", "entity": "entity", "group": "run_group", "tags": "run_tags"}  # by W&B's name
PROJECT = "svdexp"  # where neither we nor W&B were told of another
SECONDS_TO_BEGIN = 30.0  # that W&B has to answer; then the run is kept offline
SECONDS_TO_UPLOAD = 300.0  # at the end of an online run; what is missing then stays on disk, to be sent later
OFFLINE = ("offline", "dryrun")  # W&B's words for it


class WandbMode(StrEnum):
    """Whether a run is sent while it runs."""

    auto = "auto"  # what W&B was told, online where nothing; without a login offline
    online = "online"
    offline = "offline"


@dataclass(frozen=True)
class WandbTracker:
    """Options of W&B's run. Its id is the cell, so one that is tried again goes on with the same run.

    Attributes:
        mode: online or offline.
        project: where the run belongs; None is what W&B was told ($WANDB_PROJECT, `wandb init`), else `svdexp`.
        entity: whose project; None is what W&B was told, else the account's own.
        group: None is the sweep's folder, for a run of a sweep.
        tags: beside the method's and the model's name.
        checkpoint: send checkpoint/ as an artifact.
    """

    mode: WandbMode = WandbMode.auto
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for option, setting in OPTIONS.items():
            require_taken(f"tracker.{option}", setting, getattr(self, option))

    def start(self, config: Config, run_dir: Path, cell: str) -> "WandbSession | NoTracker":
        """Open the run, with the configuration, and say in one line where it can be seen or how it gets there."""
        run_dir = run_dir.resolve()
        with surroundings(run_dir):
            mode, reason = self.settled_mode()
            if mode == "disabled":
                return NoTracker()
            session = WandbSession(self.opened(config, run_dir, cell, mode, reason), run_dir, self.checkpoint)
        if session.url:
            log.info("W&B: %s", session.url)
        return session

    def opened(self, config: Config, run_dir: Path, cell: str, mode: Any, reason: str) -> Any:
        """W&B's run. One that should be online is kept offline where there is no login or W&B does not answer."""
        import wandb

        later = f"`{command('sync')} {to_sync(run_dir)}` sends it"
        if mode in OFFLINE:
            unasked = self.mode is WandbMode.online
            log.log(logging.WARNING if unasked else logging.INFO, "W&B: offline, %s; %s", reason, later)
        try:
            return self.init(config, run_dir, cell, mode)
        except wandb.errors.CommError as error:
            words = " ".join(str(error).split())
            log.warning("W&B: offline, because it cannot be reached (%s); %s", words, later)
            wandb.teardown()  # its service, for which a run of this id has begun
            return self.init(config, run_dir, cell, "offline")

    def settled_mode(self) -> tuple[Any, str]:
        """W&B's word for what `mode` comes to, and why, where that is offline. Nobody is asked, and no server."""
        import wandb

        mode = self.mode.value if self.mode is not WandbMode.auto else wandb.setup().settings.mode
        if mode in (*OFFLINE, "disabled"):
            return mode, "as it was told"
        lack = lacking_login()
        return ("offline", f"because {lack}") if lack else (mode, "")

    def init(self, config: Config, run_dir: Path, cell: str, mode: Any) -> Any:
        """W&B's run in this mode."""
        import wandb

        names = [name[:LONGEST_TAG] for name in (config.method.name, config.model.name) if name]
        told = wandb.setup().settings
        return wandb.init(
            project=self.project or told.project or PROJECT,
            entity=self.entity,
            id=None if told.run_id else cell,  # whoever sets $WANDB_RUN_ID, such as an agent, means that run
            resume="allow",
            name=shortened(run_dir.name),
            group=self.group or shortened(sweep_of(run_dir)),
            job_type="compress",
            tags=[*names, *self.tags],
            config=asdict(config),
            dir=str(run_dir),
            mode=mode,
            # No words of W&B's among ours, nothing of the checkout, and no wait without end for a lost network.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                init_timeout=SECONDS_TO_BEGIN,
                finish_timeout=SECONDS_TO_UPLOAD,
                finish_timeout_raises=True,
            ),
        )


def lacking_login(verify: bool = False) -> str | None:
    """Why W&B would have to ask for a login; None where there is one, by `wandb login`, a key, or a token.

    Nobody is asked, and W&B's server only to `verify` the login.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(
            host=wandb.setup().settings.base_url, source="svdexp", prompt=False, update_session=False, verify=verify
        )
    except wandb.errors.AuthenticationError as error:
        if verify:
            return " ".join(str(error).split())
        return f"the login is not valid ({' '.join(str(error).split())})"
    return None if found else "there is no login (`wandb login`)"


class WandbSession:
    """An open run of W&B's."""

    def __init__(self, run: Any, run_dir: Path, checkpoint: bool) -> None:
        self.run, self.run_dir, self.checkpoint = run, run_dir, checkpoint
        self.url: str | None = None if run.offline else run.url

    def stages(self, figures: Results) -> None:
        """A step of the run's history."""
        with surroundings(self.run_dir):
            self.run.log(figures)

    def log(self, findings: Findings) -> None:
        """Figures under their names in results.json, then layers, spectra, curves and files."""
        with surroundings(self.run_dir):
            self.run.summary.update(findings.figures)
            if findings.learned:
                self.log_learning(findings)
            for name, part in TRAINING.of(findings.results).items():
                self.log_training(f"training/{name}", part["curve"])
            self.run.log(self.pictures(findings))
            self.log_files()

    def pictures(self, findings: Findings) -> dict[str, Any]:
        """Tables, lines over depth and the heat map, by W&B's key."""
        import wandb

        rows = findings.layers
        headings: list[Any] = list(rows[0])
        found: dict[str, Any] = {"layers": wandb.Table(headings, [list(row.values()) for row in rows])}
        if findings.spectra:
            columns: list[Any] = ["layer", "index", "singular value", "energy beyond"]
            found["spectra"] = wandb.Table(columns, findings.spectra)
        for key, title in (("rank", "rank"), ("energy_lost", "share of the weighted energy lost")):
            if lines := over_depth(rows, key):
                points = [list(zip(*line, strict=True)) for line in lines.values()]
                xs, ys = zip(*points, strict=True)
                found[f"depth/{key}"] = wandb.plot.line_series(xs, ys, list(lines), f"{title} by depth", "block")
        if picture := rank_picture(findings):
            path = self.run_dir / "wandb" / "rank_map.png"
            path.write_bytes(picture)
            found["rank_map"] = wandb.Image(str(path))
        return found

    def log_learning(self, findings: Findings) -> None:
        """How ranks were learned: a history over the training's steps, and a table of every layer's γ."""
        import wandb

        self.run.define_metric("learned_ranks/*", step_metric="learned_ranks/step")
        for step, values in enumerate(zip(*findings.learned.values(), strict=True)):
            named = {f"learned_ranks/{key}": value for key, value in zip(findings.learned, values, strict=True)}
            self.run.log({"learned_ranks/step": step} | named)
        self.run.log({"gamma": wandb.Table(["layer", "step", "gamma"], findings.gamma)})

    def log_training(self, key: str, curve: list[list[float | None]]) -> None:
        """How factors were trained: a history over the looks at held-out text."""
        self.run.define_metric(f"{key}/*", step_metric=f"{key}/step")
        for step, loss, score in curve:
            values = {"step": step, "held_out": score} | ({} if loss is None else {"loss": loss})
            self.run.log({f"{key}/{name}": value for name, value in values.items()})

    def log_files(self) -> None:
        """Artifacts."""
        import wandb

        ranks = wandb.Artifact(f"ranks-{self.run.id}", "ranks")
        ranks.add_file(str(self.run_dir / "ranks.json"))
        self.run.log_artifact(ranks)
        if self.checkpoint:
            model = wandb.Artifact(f"checkpoint-{self.run.id}", "model")
            # immutable: sent from where it lies; a copy would take the model's size again
            model.add_dir(str(self.run_dir / "checkpoint"), policy="immutable")
            self.run.log_artifact(model)

    def finish(self, succeeded: bool) -> None:
        """Close the run, as finished or as failed."""
        with surroundings(self.run_dir):
            self.run.finish(exit_code=0 if succeeded else 1)


def require_taken(knob: str, setting: str, value: Any) -> None:
    """Raise UserError, in W&B's own words, if W&B does not take `value` as its `setting`."""
    try:
        import wandb
    except ImportError:
        return  # the tracker's start says so
    try:
        wandb.Settings(**{setting: value})
    except Exception as error:  # W&B's own, and pydantic's, which has many lines
        reason = error.errors()[0]["msg"].removeprefix("Value error, ") if hasattr(error, "errors") else error
        raise UserError(f"{knob}={value} is not taken by W&B: {reason}") from error


def shortened(name: str | None) -> str | None:
    """`name` as W&B takes it; its end, which tells cells apart, stays."""
    if name is None or len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 2]}…{name[1 - LONGEST_NAME // 2 :]}"


def sweep_of(run_dir: Path) -> str | None:
    """The name of the sweep's folder that `run_dir` is in; a mere time of day with the date before it."""
    sweep = sweep_folder(run_dir)
    if sweep is None:
        return None
    return f"{sweep.parent.name}/{sweep.name}" if re.fullmatch(r"\d\d-\d\d-\d\d", sweep.name) else sweep.name


@contextmanager
def surroundings(run_dir: Path) -> Iterator[None]:
    """Within this context W&B keeps even its copies of artifacts below `run_dir`, says nothing, and reports nothing
    about itself, unless the user's environment says otherwise. Its settings are the user's.

    Only environment variables say so, and a sweep's runs may share one process.
    """
    folders = {f"WANDB_{name.upper()}_DIR": str(run_dir / "wandb" / name) for name in ("data", "cache")}
    wanted = folders | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    new = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]
