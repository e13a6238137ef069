"""Options as the fields of a dataclass, which is their schema."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svdexp.runtime.errors import UserError


def fill(part: type, values: Mapping[str, Any], knob: str) -> Any:
    """The dataclass `part` with the options in `values`, as `knob` names them.

    Raises:
        UserError: misspelt or missing option, wrong type, or value out of range.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), values))
    except OmegaConfBaseException as error:
        key = f".{error.key}" if error.key is not None else ""
        raise UserError(f"{knob}{key}: {str(error).splitlines()[0]}") from error
