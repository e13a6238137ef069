"""Pictures as Vega-Lite says them: panels, drawn here as SVG, PDF and PNG, or by the page that holds them.

Names that runs brought stand in data and in domains, never in an expression.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from typing import Any

from svdexp.report.style import Style, ticks

Spec = dict[str, Any]  # of Vega-Lite
VERSION = "6.4"  # of Vega-Lite
WIDTH, HEIGHT = 270, 210  # of a panel's axes on paper, in pixels
TALL = 300  # a panel on a page, with all that stands around its axes
FONT = "Liberation Sans, Arial, sans-serif"
# As style.number writes it.
NUMBER = (
    "datum.value >= 1e6 ? format(datum.value, '.2~g') : "
    "datum.value >= 1000 ? format(datum.value, ',.0f') : format(datum.value, '.3~g')"
)
# Of marks and words that have no method's colour: ink and paper. A page that may be dark says what they are.
PAPER = {"ink": "#222222", "paper": "#ffffff"}
PAGE = {"ink": "currentColor", "paper": "var(--paper)"}


# A share of the opacity that the look gives.
WHOLE = {"condition": {"test": "datum.value % 1", "value": 0}, "value": 1}
# Of a channel of blocks. Between three of them or two Vega's steps are halves, whatever tickMinStep says: these have no
# words and no line.
BLOCKS: Spec = {
    "type": "quantitative",
    "scale": {"zero": False, "nice": False, "padding": 6},
    "axis": {
        **{"title": "block", "tickMinStep": 1, "labelExpr": "datum.value % 1 ? '' : format(datum.value, 'd')"},
        "gridOpacity": WHOLE,
        "tickOpacity": WHOLE,
    },
}


# Of what a page shows: all but the lines that its signal `hidden` lists.
SHOWN = {"filter": "!isDefined(datum.series) || indexof(hidden, datum.series) < 0"}


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        panels: beside each other, `columns` in a row.
        notes: what it leaves out, in words.
        looks: of its lines; none where it has no lines.
        scale: of its colours: the least value, the largest, and what they are; None where it has lines.
        width, height: of a panel on paper, in pixels.
    """

    panels: Sequence[Spec]
    columns: int
    notes: Sequence[str] = ()
    looks: Mapping[str, Style] = field(default_factory=dict)
    scale: tuple[str, str, str] | None = None
    width: int = WIDTH
    height: int = HEIGHT


def svg(plot: Plot) -> str:
    """The picture as an SVG file's content."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(on_paper(plot), vl_version=VERSION))


def pdf(drawn: str) -> bytes:
    """What `svg` drew as PDF, in a seventh of the time."""
    import vl_convert

    return bytes(vl_convert.svg_to_pdf(drawn))


def png(drawn: str) -> bytes:
    """What `svg` drew as PNG, 144 pixels an inch, in a third of the time."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(drawn, scale=2, ppi=72))


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one module of JavaScript, which puts `vegaEmbed` on the page's window."""
    import vl_convert

    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VERSION)
    return re.sub(r"</(?=script)", r"<\\/", str(code), flags=re.IGNORECASE)


def on_paper(plot: Plot) -> Spec:
    """The whole picture, with a legend below it."""
    longest = max(map(len, plot.looks), default=1)
    across = max(1, plot.width * min(plot.columns, len(plot.panels)) // (7 * longest + 40))
    legend = {"orient": "bottom", "title": None, "columns": across, "labelLimit": 0, "symbolStrokeWidth": 2}
    panels = [{"width": plot.width, "height": plot.height} | panel for panel in plot.panels]
    config = look(**PAPER)
    config["legend"] |= legend if plot.looks else {}
    whole = {"concat": panels, "columns": plot.columns, "spacing": 28, "background": "white", "config": config}
    return dict(plain(whole))


def on_page(panel: Spec, *, height: int = TALL, legend: bool = False) -> Spec:
    """A panel that fills its place on a page, which has the legend unless the panel wants one of its own.

    Its signal `hidden` lists the lines that are not shown.
    """
    config = look(**PAGE)
    if not legend:
        config["legend"] |= {"disable": True}
        if colour := panel.get("encoding", {}).get("color"):
            panel = panel | {"encoding": panel["encoding"] | {"color": colour | {"legend": None}}}
    if "data" not in panel:  # a filter of the whole reaches no layer that has data of its own
        panel = panel | {"layer": [layer | {"transform": [SHOWN]} for layer in panel["layer"]]}
    return {
        **{"width": "container", "height": height, "background": None, "config": config, "transform": [SHOWN]},
        **{"params": [{"name": "hidden", "value": []}], "autosize": {"type": "fit", "contains": "padding"}},
        **panel,
    }


def look(ink: str, paper: str) -> dict[str, Any]:
    """Vega-Lite's config."""
    faint = {"domainColor": ink, "domainOpacity": 0.35, "tickColor": ink, "tickOpacity": 0.35}
    words = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 10,
        "titleFontSize": 10,
        "titleFontWeight": "normal",
    }
    return {
        "font": FONT,
        "axis": {**faint, **words, "gridColor": ink, "gridOpacity": 0.13, "labelOverlap": "greedy", "labelLimit": 150},
        "legend": {**words, "gradientLength": 120},
        "title": {"color": ink, "anchor": "start", "fontSize": 11, "fontWeight": 600, "limit": 0, "offset": 8},
        "view": {"stroke": None},
        "style": {
            "dense": {"color": ink, "strokeDash": [5, 3], "strokeWidth": 1},
            "star": {"color": ink, "fill": ink, "stroke": ink},
            "error": {"color": ink, "strokeWidth": 1, "opacity": 0.55},
            "front": {"color": ink, "strokeWidth": 6, "opacity": 0.18},
            "beyond": {"fill": paper, "strokeWidth": 1.6},
        },
    }


def lined(title: str, characters: int = 46) -> list[str]:
    """A panel's title in lines that do not reach into the next panel."""
    return textwrap.wrap(title, characters) or [""]


def plain(value: Any) -> Any:
    """The same as JSON knows it: no number that is not finite, no type of numpy's."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not isfinite(value) else value


def lines(looks: Mapping[str, Style], *channels: str) -> Spec:
    """The channels that tell lines apart: colour, shape, strokeDash."""
    told = {"color": "colour", "stroke": "colour", "shape": "shape", "strokeDash": "dash"}
    return {
        channel: {
            **{"field": "series", "type": "nominal"},
            "scale": {"domain": list(looks), "range": [getattr(style, told[channel]) for style in looks.values()]},
        }
        for channel in channels
    }


def logarithmic(low: float, high: float, title: str) -> Spec:
    """A y channel with round numbers on a logarithmic scale from `low` to `high`."""
    scale = {"type": "log", "domain": [low, high], "nice": False}
    return {
        **{"field": "y", "type": "quantitative", "scale": scale},
        "axis": {"values": ticks(low, high), "labelExpr": NUMBER, "title": title},
    }
