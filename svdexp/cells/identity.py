"""The identity of a run: a hash of its relevant keys and of the local files behind them.

What is named by a hub id counts by its name and `model.revision`; pin the revision where the hub may change. Versions
of libraries do not count: results.json records them.
"""

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

from svdexp.cells.naming import relevant
from svdexp.checkpoints.loading import locate
from svdexp.data import Split, files_of
from svdexp.evaluation import reading_of, task_files
from svdexp.runtime.shelves import identity, write_note
from svdexp.schema import Config, EvaluateConfig, ModelConfig

LARGE = 64 * 2**20  # bytes; hashing takes about a second per GB, so of larger files it is done once


def identity_of(config: Config | EvaluateConfig) -> str:
    """A short hash, equal in every process and on every machine.

    Raises:
        UserError: a local file or folder of the configuration is not there.
    """
    notes = Path(config.cache) / "contents" if config.cache else None
    contents = {label: digest(path, notes) for label, path in files_behind(config).items()}
    return identity(config=relevant(asdict(config)), contents=contents)


def files_behind(config: Config | EvaluateConfig) -> dict[str, Path]:
    """Every local file that the run reads, by what it is to the run.

    Raises:
        UserError: one is not there.
    """
    found = {f"model/{path.name}": path for path in model_files(config.model)}
    texts = {}
    if isinstance(config, Config):
        calibration = config.calibration
        texts["calibration"] = files_of(calibration.text, Split.calibration, calibration.files)
        if path := config.method.allocation.get("path"):  # ranks; a missing file is the allocation's to report
            texts["allocation"] = [Path(path)] if Path(path).is_file() else []
        for name, part in config.method.training.items():
            if text := part.get("text"):
                texts[f"training/{name}"] = files_of(text, Split.calibration, part.get("files") or [])
    for name in config.eval.texts:
        texts[name] = files_of(name, Split.evaluation, config.eval.files, reading_of(name, config.eval))
    texts |= task_files(config.eval)
    return found | {f"{name}/{index}": path for name, paths in texts.items() for index, path in enumerate(paths)}


def model_files(config: ModelConfig) -> list[Path]:
    """The files of a local model, or of the checkpoint in a run directory; of one on the hub there are none."""
    folder = Path(config.path).expanduser() / "checkpoint"
    if not (folder / "config.json").is_file():
        source = locate(config)
        folder = Path(source.location)
        if source.gguf_file is not None:
            return [folder / source.gguf_file]
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def digest(path: Path, notes: Path | None) -> str:
    """SHA-256 of a file's contents; of a large one it is noted in the folder `notes`, by path, size and time."""
    status = path.stat()
    note = None
    if notes and status.st_size > LARGE:
        note = notes / identity(path=str(path.resolve()), size=status.st_size, time=status.st_mtime_ns)
        if os.access(note, os.R_OK):
            return note.read_text()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if note:
        write_note(note, found)
    return found
