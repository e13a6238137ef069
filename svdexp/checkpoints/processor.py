"""What prepares images for a model, and lies in its folder beside the tokenizer."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from svdexp.checkpoints.architectures import sees_images

# The files of a processor in transformers; those that a tokenizer writes as well are left to it.
FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja")


def copy_processor(model: PreTrainedModel, folder: Path) -> None:
    """Put the files of the processor of `model` into `folder`, from where its weights were read.

    They are copied as they are, because making a processor may take libraries that compression does not need.
    """
    place = model.name_or_path
    if not sees_images(model.config) or not place:
        return
    for name in FILES:
        found = _find(place, name, getattr(model.config, "_commit_hash", None))
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def _find(place: str, name: str, revision: str | None) -> Path | None:
    here = Path(place)
    if here.is_dir():
        return here / name if (here / name).is_file() else None
    asked = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(place, name, revision=revision, **asked)
    return Path(found) if found else None
