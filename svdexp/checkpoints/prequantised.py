"""Models whose weights lie in codes: some transformers turns back into numbers, all others cannot be compressed."""

from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from svdexp.runtime.errors import UserError

# By the name that config.json gives them: formats that transformers reads as numbers, on any device.
READ_AS_NUMBERS: Mapping[str, Any] = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}


def scheme_of(config: Any) -> str | None:
    """How the weights of a transformers configuration are quantised, by its own name; None: not at all."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method", "?") if isinstance(found, Mapping) else getattr(found, "quant_method", "?")
    return str(getattr(method, "value", method))


def refuse_codes(config: Any, knob: str) -> None:
    """Raise UserError, before they are read, for weights in codes that are no numbers afterwards."""
    scheme = scheme_of(config)
    if scheme is not None and scheme not in READ_AS_NUMBERS:
        raise UserError(
            f"{knob} is quantised already ({scheme}), and svdexp compresses floating-point weights: "
            "name the model that it was made from"
        )


def as_numbers(config: Any) -> dict[str, Any]:
    """What from_pretrained takes to read weights in codes as numbers."""
    scheme = scheme_of(config)
    known = READ_AS_NUMBERS.get(scheme or "")
    return {"quantization_config": known(dequantize=True)} if known else {}
