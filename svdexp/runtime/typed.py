"""Options as the fields of a dataclass, which is their schema."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from svdexp.runtime.errors import UserError
from svdexp.runtime.nearest import did_you_mean


def fill(part: type, values: Mapping[str, Any], knob: str) -> Any:
    """The dataclass `part` with the options in `values`, as `knob` names them.

    Raises:
        UserError: misspelt or missing option, wrong type, or value out of range.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), values))
    except OmegaConfBaseException as error:
        key = f".{error.key}" if error.key is not None else ""
        misspelt = isinstance(error, ConfigKeyError) and error.key is not None
        near = did_you_mean(str(error.key), [field.name for field in fields(part)]) if misspelt else ""
        raise UserError(f"{knob}{key}: {str(error).splitlines()[0]}{near}") from error
