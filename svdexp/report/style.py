"""One look for all pictures: a colour for every method, the same in every report, and numbers that people read."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, isfinite, log10

# Middle tones, three to one against white and against the dark page, far apart for colour-blind people as well; markers
# tell lines apart in print, too.
COLOURS = {
    "asvd": "#b07a00",
    "d2_moe": "#4f6fd8",
    "dobi": "#a35fd0",
    "dobi_noremap": "#7a6cf0",
    "dobi_uniform": "#d6479b",
    "drank": "#0b8f8a",
    "fwsvd": "#a96b59",
    "kfac_lems": "#c24d7e",
    "kron": "#e0561a",
    "mixed": "#8c7a3d",
    "quantise": "#3c9440",
    "svd": "#7b858f",
    "svd_llm": "#3587d3",
    "svd_llm_update": "#1f8fb8",
    "svd_llm_v2": "#6b8e00",
    "swift_svd": "#d9414a",
}
# of dense models; no line has it
STAR = "M0,-1.2L0.27,-0.37L1.14,-0.37L0.44,0.14L0.7,0.97L0,0.46L-0.7,0.97L-0.44,0.14L-1.14,-0.37L-0.27,-0.37Z"
CROSSED = "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z"
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right", CROSSED)
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
# Round numbers for logarithmic axes, the coarsest first.
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class Style:
    """Of a line: its method's colour, and a marker and dashes that no other line of that colour has."""

    colour: str
    shape: str
    dash: tuple[int, ...]


def styles(series: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """By the name of a line its look, from pairs of name and method; lines of one method differ in marker and dashes.

    A method that is none of svdexp's takes the colour that its name falls on.
    """
    found: dict[str, Style] = {}
    for name, method in sorted(set(series)):
        first = _number(method)
        colour = COLOURS.get(method) or list(COLOURS.values())[first % len(COLOURS)]
        looks = (
            Style(colour, SHAPES[(first + step) % len(SHAPES)], DASHES[(step + turn) % len(DASHES)])
            for turn, step in product(range(len(DASHES)), range(len(SHAPES)))
        )
        found[name] = next((look for look in looks if look not in found.values()), Style(colour, SHAPES[0], DASHES[0]))
    return found


def marker(shape: str) -> str:
    """A shape of Vega's as the path of an SVG, about one unit around its middle."""
    triangle = {"triangle-up": "M0,-1.1L1.1,1L-1.1,1Z", "triangle-down": "M0,1.1L1.1,-1L-1.1,-1Z"}
    paths = {
        **{
            "circle": "M1,0A1,1 0 1 1 -1,0A1,1 0 1 1 1,0Z",
            "square": "M-1,-1H1V1H-1Z",
            "diamond": "M0,-1.3L1,0L0,1.3L-1,0Z",
        },
        **{"cross": "M-.4,-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z", "triangle-right": "M1.1,0L-1,1.1L-1,-1.1Z"},
        **triangle,
    }
    return paths.get(shape, shape)


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers or more between `low` and `high` for a logarithmic axis, both above zero."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    found: list[float] = []
    for mantissas in MANTISSAS:
        found = [m * 10.0**d for d, m in product(decades, mantissas) if low <= m * 10.0**d <= high]
        if len(found) >= 4:
            return found[:: -(-len(found) // 8)]
    step = 10.0 ** floor(log10((high - low) / 3))
    step *= next(m for m in (5, 2, 1) if (high - low) / (m * step) >= 3 or m == 1)
    even = [step * i for i in range(ceil(low / step), floor(high / step) + 1)]
    return even if len(even) > len(found) else found


def number(value: float) -> str:
    """Few digits, thousands apart, from a million on as a power of ten; `inf` and `nan` as they are."""
    if not isfinite(value):
        return str(value)
    if value >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def with_error(value: float, error: float | None) -> str:
    """`7.891 ± 0.051`: the error with two digits and the value with as many places, four digits where it has none."""
    if not isfinite(value):
        return "not finite"
    if error is None or not isfinite(error) or error <= 0:
        return f"{value:.4g}" if abs(value) < 1e5 else number(value)
    if error >= 100 or value >= 1e6:
        return f"{number(value)} ± {number(error)}"
    places = min(5, max(0, 1 - floor(log10(error))))
    return f"{value:,.{places}f} ± {error:.{places}f}"


def byte_unit(largest: float) -> tuple[float, str]:
    """What to divide bytes by, and what they are called then."""
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB") if largest >= 2e6 else (1e3, "kB")


def _number(word: str) -> int:
    """The place of a method among svdexp's; of another word a number that is always the same."""
    known = list(COLOURS)
    return known.index(word) if word in known else int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
