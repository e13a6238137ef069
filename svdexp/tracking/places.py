"""Where a run belongs: its sweep's folder."""

import os
import shlex
from pathlib import Path


def sweep_folder(run_dir: Path) -> Path | None:
    """The folder of the sweep that the run is a cell of; None of a single run."""
    return run_dir.parent if (run_dir.parent / "multirun.yaml").exists() else None


def to_sync(run_dir: Path) -> str:
    """The folder to give to `svdexp sync`, as a word of a command line: the sweep's, where there is one."""
    folder = sweep_folder(run_dir) or run_dir
    near = os.path.relpath(folder)
    return shlex.quote(str(folder) if near.startswith("..") else near)
