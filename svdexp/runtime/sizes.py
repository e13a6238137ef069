"""Sizes in bytes, as people write them."""

import re

from svdexp.runtime.errors import UserError

UNITS = {"": 1, "B": 1} | {f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGT")}
UNITS |= {f"{prefix}IB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")}


def parse_size(words: str, knob: str) -> float:
    """300MB, 1.2GiB, 300000000, or a fraction such as 0.6, which is what it says.

    Raises:
        UserError: it is none of these; blames `knob`.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", words)
    if not found or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise UserError(f"{knob}={words} is no size: 300MB, 1.2GiB, or 0.6 of the dense model's bytes")
    return float(found[1]) * float(UNITS[found[2].upper()])
