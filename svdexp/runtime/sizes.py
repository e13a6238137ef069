"""Sizes in bytes and multiples of a figure, as people write them."""

import re

from svdexp.runtime.errors import UserError, require

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


def size_in_words(count: float) -> str:
    """Bytes as people read them: `269.0 MB` of 10⁶, below one of these `57.3 kB`."""
    return f"{count / 1e6:,.1f} MB" if abs(count) >= 1e6 else f"{count / 1e3:.1f} kB"


def parse_factor(words: str, knob: str) -> float:
    """1.05x, which is 1.05.

    Raises:
        UserError: it is no such factor, or below 1; blames `knob`.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)[x×]\s*", words)
    require(found is not None, f"{knob}={words} is no factor: 1.05x is at most 1.05 times the dense model's perplexity")
    assert found
    factor = float(found[1])
    require(factor >= 1, f"{knob}={words}: a compressed model cannot be asked to be better than the dense one, 1x")
    return factor
