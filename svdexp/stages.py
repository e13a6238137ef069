"""Build a method's parts from configuration.

A part (weighting, allocation, storage, …) is a frozen dataclass whose fields are its options and whose
`__call__` is its mathematics. The dataclass is its own schema: types, misspelt keys and ranges are checked
here, when the part is built, and nowhere else. This is the only place that turns a `_target_` into code.
"""

from dataclasses import is_dataclass
from typing import Any

from hydra.utils import get_class

from svdexp.errors import UserError
from svdexp.method import Method
from svdexp.schema import Config, fill


def build(options: dict[str, Any], knob: str) -> Any:
    """The dataclass named by `options['_target_']`, filled with the other options.

    Raises:
        UserError: unknown target, misspelt option, wrong type, or value out of range; names `knob`.
    """
    values = dict(options)
    target = values.pop("_target_", None)
    if target is None:
        raise UserError(f"{knob} needs a _target_, the dotted path of a dataclass")
    try:
        part = get_class(target)
    except Exception as error:
        raise UserError(f"{knob}._target_={target} cannot be imported: {error}") from error
    if not is_dataclass(part):
        raise UserError(f"{knob}._target_={target} is not a dataclass")
    return fill(part, values, knob)


def build_method(config: Config) -> Method:
    """The stages of `config.method` and `config.storage` as one object."""
    parts = config.method
    return Method(
        name=parts.name,
        weighting=build(parts.weighting, "method.weighting") if parts.weighting else None,
        allocation=build(parts.allocation, "method.allocation"),
        storage=build(config.storage, "storage"),
        update=build(parts.update, "method.update") if parts.update else None,
        training={name: build(part, f"method.training.{name}") for name, part in parts.training.items()},
        traversal=parts.traversal,
        numerics=parts.numerics,
        sigma_fuse=parts.sigma_fuse,
    )
