"""Where a compressed model comes from: its dense model's name, repository and licence."""

import logging
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader
from huggingface_hub import ModelCard

from svdexp.errors import UserError
from svdexp.models.loading import Source, locate
from svdexp.schema import ModelConfig

log = logging.getLogger(__name__)


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


def origin(config: ModelConfig) -> Origin:
    """What can be found out about the dense model that `config` means, which may have gone since."""
    try:
        source = locate(config)
    except UserError:
        return Origin(config.name)
    folder = Path(source.location)
    texts = [path for pattern in ("LICEN[CS]E*", "NOTICE*") for path in sorted(folder.glob(pattern)) if path.is_file()]
    return Origin(config.name, None if folder.is_dir() else source.location, _licence(source), tuple(texts))


def _licence(source: Source) -> str | None:
    """The licence in a GGUF file's header, in a folder's README.md, or in the hub's model card."""
    try:
        if source.gguf_file is not None:
            field = GGUFReader(Path(source.location) / source.gguf_file).get_field("general.license")
            return None if field is None else str(field.contents())
        readme = Path(source.location) / "README.md"
        found = ModelCard.load(readme if Path(source.location).is_dir() else source.location).data.license
        return None if found is None else str(found)
    except Exception as error:  # no card, no network, a damaged header: the card then says that it is not known
        log.info("the licence of %s cannot be found out: %s", source.location, str(error).splitlines()[0])
        return None
