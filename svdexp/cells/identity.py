"""The identity of a run: a hash of its relevant keys and of the local files behind them.

What is named by a hub id counts by its name and `model.revision`; pin the revision where the hub may change. Versions
of libraries do not count: results.json records them.
"""

from dataclasses import asdict
from pathlib import Path

from svdexp.cells.naming import relevant
from svdexp.checkpoints.loading import locate
from svdexp.data import Excerpt, Split, files_of
from svdexp.data.captions import shown_by
from svdexp.data.reads import files_read_by
from svdexp.evaluation import reading_of, task_files
from svdexp.method import build_method
from svdexp.runtime.contents import digest
from svdexp.runtime.shelves import identity
from svdexp.schema import Config, EvaluateConfig, ModelConfig


def identity_of(config: Config | EvaluateConfig) -> str:
    """A short hash, equal in every process and on every machine.

    Raises:
        UserError: a local file or folder of the configuration is not there, or a part of the method cannot be built.
    """
    notes = Path(config.cache) / "contents" if config.cache else None
    contents = {label: digest(path, notes) for label, path in files_behind(config).items()}
    return identity(config=relevant(asdict(config)), contents=contents)


def files_behind(config: Config | EvaluateConfig) -> dict[str, Path]:
    """Every local file that the run reads, by what it is to the run.

    Raises:
        UserError: as `identity_of`.
    """
    found = {f"model/{path.name}": path for path in model_files(config.model)}
    texts = {}
    if isinstance(config, Config):
        texts["calibration"] = Excerpt.of(config.calibration).read_from()
        for knob, part in build_method(config).parts.items():
            texts[knob.removeprefix("method.").replace(".", "/")] = files_read_by(part)
    for name in config.eval.texts:
        texts[name] = files_of(name, Split.evaluation, config.eval.files, reading_of(name, config.eval))
    texts |= task_files(config.eval)
    texts["prompts"] = [image for image, _ in map(shown_by, config.eval.prompts) if image is not None]
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
