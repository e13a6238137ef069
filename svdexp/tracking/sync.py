"""Command line: `python -m svdexp.tracking.sync FOLDER…`: what runs kept for W&B is sent, now that there is a network.

Sends the offline runs in the folders of runs and sweeps, also those of runs that failed, and lets trackers have the
results that they were never told of. What was sent before is left out. The URL of a run enters its results.json.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svdexp.cells import UNTRACKED, HeldError
from svdexp.cells.cell import held
from svdexp.method import build
from svdexp.record import RESULTS
from svdexp.runtime.errors import UserError
from svdexp.runtime.invocation import command
from svdexp.schema import Config, validate
from svdexp.tracking.tracker import Tracker, complete, note_url
from svdexp.tracking.wandb_tracker import WandbMode, WandbTracker, lacking_login

log = logging.getLogger("svdexp")

OFFLINE_RUN = "wandb/offline-run-*/run-*.wandb"
AT_ONCE = 200  # runs that one `wandb sync` is given: a command line is finite
VIEW = re.compile(r"View run .*?\bat (\S+/runs/([^\s/]+))")  # what `wandb sync` prints of a run


def main(words: Sequence[str] | None = None) -> int:
    """Send what the folders on the command line have."""
    parser = argparse.ArgumentParser(prog=command("sync"), description="Send what runs kept for W&B.")
    parser.add_argument("folders", nargs="+", type=Path, help="of runs and sweeps; searched to any depth")
    options = parser.parse_args(words)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        sync(options.folders)
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    return 0


def sync(folders: Iterable[Path]) -> None:
    """Send everything below the folders.

    Raises:
        UserError: a folder is not there, W&B has no login or does not answer, or something was not sent.
    """
    runs, cells = set(), set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        runs |= {path for path in folder.rglob(OFFLINE_RUN) if not is_sent(path)}
        cells |= {path.parent for path in folder.rglob(UNTRACKED) if (path.parent / RESULTS).is_file()}
    runs = {path for path in runs if is_free(run_dir_of(path))}
    trackers = {cell: tracker_of(cell) for cell in sorted(cells) if is_free(cell)}
    if not (runs or trackers):
        print("nothing waits to be sent")
        return
    if runs or any(isinstance(tracker, WandbTracker) for tracker, _ in trackers.values()):
        require_login(len({*map(run_dir_of, runs), *trackers}))
    send(sorted(runs))  # first: what a tracker is told now comes after what it was told then
    for cell, (tracker, config) in trackers.items():
        with held(cell):
            complete(tracker, config, cell)
    left = sum(not is_sent(path) for path in runs) + sum((cell / UNTRACKED).is_file() for cell in trackers)
    if left:
        raise UserError(f"{left} of {len(runs) + len(trackers)} were not sent, for reasons above; they are kept")


def is_sent(run: Path) -> bool:
    """Whether `wandb sync` has sent the run's file: it leaves a mark."""
    return run.with_suffix(".wandb.synced").is_file()


def run_dir_of(run: Path) -> Path:
    """The run's folder that an offline run of W&B's is in."""
    return run.parents[2]


def is_free(run_dir: Path) -> bool:
    """Whether no process is at work there; else a line says so."""
    try:
        with held(run_dir):
            return True
    except HeldError:
        print(f"{run_dir}: a process is at work there; left for later")
        return False


def tracker_of(run_dir: Path) -> tuple[Tracker, Config]:
    """The tracker that a run asked for, which now is to send, and the run's configuration.

    Raises:
        UserError: the run's configuration cannot be read, or is of another version.
    """
    path = run_dir / ".hydra" / "config.yaml"
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(cfg, DictConfig)
    config = validate(cfg)
    tracker: Tracker = build(config.tracker, "tracker")
    return (replace(tracker, mode=WandbMode.online) if isinstance(tracker, WandbTracker) else tracker), config


def require_login(waiting: int) -> None:
    """Raise UserError unless W&B can be reached with a login."""
    if lack := lacking_login(verify=True):
        raise UserError(f"{waiting} runs wait for W&B, but {lack}")


def send(runs: Sequence[Path]) -> None:
    """Send offline runs by `wandb sync`, and note where they can be seen."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    for first in range(0, len(runs), AT_ONCE):
        some = runs[first : first + AT_ONCE]
        command = [sys.executable, "-m", "wandb", "sync", *map(str, some)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        urls = {name: url for url, name in VIEW.findall(done.stdout)}
        for path in some:
            if not is_sent(path):
                print(f"{path.parent}: not sent")
            elif url := urls.get(path.stem.removeprefix("run-")):
                print(f"{run_dir_of(path)}: {url}")
                note_url(run_dir_of(path), url)
        if not all(map(is_sent, some)):
            print(done.stdout)


if __name__ == "__main__":
    sys.exit(interruptible(main))
