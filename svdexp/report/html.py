"""The report as one HTML page that needs no other file: `page/` has its template, its look and its programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from svdexp.report.details import Facts
from svdexp.report.document import Section
from svdexp.report.layerwise import of_a_run, of_two_runs
from svdexp.report.style import Style, marker
from svdexp.report.vega import TALL, Plot, library, on_page, plain

FOLDER = Path(__file__).with_name("page")
PROGRAMS = ("tables.js", "pictures.js", "runs.js")


def page(
    title: str,
    sections: Sequence[Section],
    looks: Mapping[str, Style],
    runs: Sequence[Facts],
    data: Sequence[Mapping[str, Any]],
) -> str:
    """The page. `runs` and `data` say of every run what its own view shows: facts, and numbers for the programs."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["marker"] = marker
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    plots = [picture.plot for section in sections for picture in section.pictures]
    pictures = [on_page(panel, height=place_height(plot)) for plot in plots for panel in plot.panels]
    return environment.get_template("page.html.jinja").render(
        title=title,
        sections=sections,
        looks=looks,
        runs=runs,
        place_height=place_height,
        data=plain(
            {"runs": data, "pictures": pictures, "ofRun": of_a_run(), "ofTwo": of_two_runs()},
        ),
        style=Markup((FOLDER / "page.css").read_text()),
        library=Markup(library()),
        programs=[Markup((FOLDER / name).read_text()) for name in PROGRAMS],
    )


def place_height(plot: Plot) -> int:
    """Of a panel on a page, with its axes, in pixels; maps are as high as they are on paper."""
    return 80 + plot.height if plot.scale else TALL
