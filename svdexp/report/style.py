"""One look for all pictures: colours that colour-blind people tell apart, a marker for every line, readable axes."""

import textwrap
from collections.abc import Iterable, Mapping
from io import BytesIO
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import library
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

# Petroff's ten (arXiv 2107.02270), optimised for colour-vision deficiencies; markers tell lines apart in print, too.
COLOURS = library["petroff10"]["axes.prop_cycle"].by_key()["color"]
MARKERS = "osD^vPX<>ph*"
DASHES = ("-", "--", ":")
LOOK: Any = {
    "figure.dpi": 140,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 5,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names may hold dollars
}
DENSE: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1}
# A value that lies above the axis, at its upper edge.
BEYOND: dict[str, Any] = {"marker": "^", "markersize": 8, "markerfacecolor": "white", "linestyle": ""}
# Round numbers for logarithmic axes, the coarsest first.
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
LABEL = 34  # characters of a legend's line

Style = dict[str, Any]


def styles(series: Iterable[str]) -> dict[str, Style]:
    """Colour, marker and dashes of every line: the same in all pictures of a report."""
    names = list(dict.fromkeys(series))
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
        }
        for i, name in enumerate(names)
    }


def grid(panels: int, columns: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of panels of that size in inches, and its axes in reading order; the last row may be short."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    return figure, axes


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, in columns below them; the figure grows by its height."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.55 + 0.068 * min(LABEL, max(map(len, entries))))))
    names = [textwrap.fill(label, LABEL) for label in entries]
    lines = max(name.count("\n") + 1 for name in names)
    figure.set_size_inches(width, height + 0.15 + 0.16 * lines * -(-len(names) // columns))
    with mpl.rc_context(LOOK):
        figure.legend(list(entries.values()), names, loc="outside lower center", ncols=columns, fontsize=8)


def explain_beyond(axis: Axes) -> None:
    """An entry of the legend for BEYOND."""
    axis.plot([], [], color="black", label="beyond the axis", **BEYOND)


def log_axis(axis: Axes, low: float, high: float) -> None:
    """A logarithmic y axis from `low` to `high` with about four round numbers on it or more."""
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for mantissas in MANTISSAS:
        ticks = [m * 10.0**d for d, m in product(decades, mantissas) if low <= m * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    else:
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number(value: float) -> str:
    """Few digits, thousands apart, from a million on as a power of ten; `inf` and `nan` as they are."""
    if not np.isfinite(value):
        return str(value)
    if value >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def png(figure: Figure) -> bytes:
    """The picture as a file's content."""
    buffer = BytesIO()
    with mpl.rc_context(LOOK):
        figure.savefig(buffer, format="png", dpi=LOOK["figure.dpi"], metadata={"Software": None})
    return buffer.getvalue()


def byte_unit(largest: float) -> tuple[float, str]:
    """What to divide bytes by, and what they are called then."""
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB") if largest >= 2e6 else (1e3, "kB")


def pick(style: Mapping[str, Any], *keys: str) -> Style:
    """Some of a style's keys."""
    return {key: style[key] for key in keys}
