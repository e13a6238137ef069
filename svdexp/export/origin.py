"""Where a compressed model comes from: its dense model's name, repository and licence.

A run knows it from its own configuration and writes it down. A run's folder may also be anyone's: what is read back
from one is words, which look nothing up on this machine and name no file.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.integrations.gguf.reader import read_gguf_metadata

from svdexp.checkpoints.loading import Source, locate
from svdexp.record.results import MODEL, ORIGIN
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_plain_yaml
from svdexp.runtime.words import FILE_ONLY
from svdexp.schema import ModelConfig

log = logging.getLogger(__name__)

TERMS = ("LICEN[CS]E*", "NOTICE*")
LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Origin:
    """The dense model.

    Attributes:
        name: what it is called.
        repository: its hub id, if it came from a hub.
        licence: the identifier that its own card or file gives, if one does.
        texts: the files of its licence, if it lies in a folder.
    """

    name: str
    repository: str | None = None
    licence: str | None = None
    texts: tuple[Path, ...] = ()

    def noted(self) -> dict[str, str | None]:
        """What a run writes down of it."""
        return {"repository": self.repository, "licence": self.licence}


def origin(config: ModelConfig, *, ask_the_hub: bool = True) -> Origin:
    """What can be found out about the dense model that `config`, the user's own, means; it may have gone since."""
    try:
        source = locate(config)
    except UserError:
        return Origin(config.name)
    folder = Path(source.location)
    if folder.is_dir():
        return Origin(config.name, None, _licence(source), licence_texts(folder))
    return Origin(config.name, source.location, _hub_licence(source.location) if ask_the_hub else None)


def recorded_origin(run_dir: Path, results: Mapping[str, Any] | None, checkpoint: Path) -> Origin | None:
    """What a run's folder says of its dense model; licence texts are those beside the weights in `checkpoint`.

    Raises:
        UserError: .hydra/config.yaml is no plain YAML.
    """
    path = run_dir / ".hydra" / "config.yaml"
    configured = read_plain_yaml(path) if path.is_file() else {}
    model = configured.get("model")
    model, results = model if isinstance(model, dict) else {}, results or {}
    name = _word(MODEL.get(results)) or _word(model.get("name"))
    if name is None:
        return None
    noted = ORIGIN.get(results)
    if noted is not None:
        repository, licence = _repository(noted.get("repository")), _word(noted.get("licence"))
    else:  # a run of an earlier version
        repository, licence = _repository(model.get("path"), owned=True), None
    if repository and not licence:
        licence = _hub_licence(repository)
    return Origin(name, repository, licence, licence_texts(checkpoint))


def licence_texts(folder: Path) -> tuple[Path, ...]:
    """The files of a model's licence in its folder; none that lies elsewhere."""
    found = [path for pattern in TERMS for path in sorted(folder.glob(pattern))]
    return tuple(path for path in found if path.is_file() and is_inside(path, folder))


def copy_texts(made_from: Origin, folder: Path) -> None:
    """Put the files of the licence into `folder`."""
    for text in made_from.texts:
        shutil.copyfile(text, folder / text.name)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, its links followed, lies in `folder`; the hub's client keeps a folder's files beside it."""
    own = folder.resolve()
    own = own.parent.parent if own.parent.name == "snapshots" else own
    return path.resolve().is_relative_to(own)


def _word(value: object) -> str | None:
    """A name that anyone may have written, if it is one: an interpolation is not."""
    plain = isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST and "${" not in value
    return str(value) if plain else None


def _repository(value: object, owned: bool = False) -> str | None:
    """A hub id, with `owned` OWNER/NAME; other paths of a model mean something only where its run was."""
    name = _word(value) or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name or not owned else None


def _licence(source: Source) -> str | None:
    """The licence in a GGUF file's header, or in a folder's README.md."""
    folder = Path(source.location)
    try:
        if source.gguf_file is not None:
            metadata, _ = read_gguf_metadata(str(folder / source.gguf_file))
            return _word(metadata.get("general.license"))
        readme = folder / "README.md"
        return _word(ModelCard.load(readme).data.license) if is_inside(readme, folder) else None
    except Exception as error:  # no card, a damaged header: the card then says that it is not known
        _say_unknown(source.location, error)
        return None


def _hub_licence(repository: str) -> str | None:
    """The licence in the hub's model card."""
    try:
        # the client would read a file of this name
        return None if Path(repository).exists() else _word(ModelCard.load(repository).data.license)
    except Exception as error:  # no card, no network
        _say_unknown(repository, error)
        return None


def _say_unknown(model: str, error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    log.info("the licence of %s cannot be found out: %s", model, reason, extra=FILE_ONLY)
