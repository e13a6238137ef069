"""Pictures whose layers the page fills in: of one run, and of the difference of two."""

from svdexp.report.vega import BLOCKS, Spec, on_page

DATA = "layers"  # the name under which the page gives them
ROWS = {"name": DATA}


def of_a_run() -> dict[str, Spec]:
    """By the key of a layer that it shows: rank and energy lost, by block and projection; singular values."""
    return {
        "share": on_page(_by_block("Rank", "share", "share of the full rank"), legend=True),
        "lost": on_page(_by_block("Energy lost", "lost", "share of the weighted energy lost"), legend=True),
        "spectrum": on_page(_spectrum(), legend=True),
    }


def of_two_runs() -> dict[str, Spec]:
    """The same of the second run's minus the first's."""
    return {
        "share": on_page(_by_block("Rank, B − A", "share", "share of the full rank, B − A"), legend=True),
        "lost": on_page(_by_block("Energy lost, B − A", "lost", "share of the energy lost, B − A"), legend=True),
    }


def _by_block(title: str, key: str, label: str) -> Spec:
    legend = {"title": None, "orient": "bottom", "columns": 3, "labelLimit": 110, "symbolType": "circle"}
    place: Spec = {
        "x": {"field": "block"} | BLOCKS,
        "y": {"field": key, "type": "quantitative", "axis": {"title": label, "tickCount": 5, "format": "~g"}},
        "color": {"field": "projection", "type": "nominal", "scale": {"scheme": "tableau10"}, "legend": legend},
    }
    told = [{"field": "name", "title": "layer"}, *({"field": f, "title": f} for f in ("rank", key))]
    mark = {"type": "point", "filled": True, "size": 26, "opacity": 1}
    return {
        "title": title,
        "data": ROWS,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1}, "encoding": place | {"y": place["y"] | {"aggregate": "mean"}}},
            {"mark": mark, "encoding": place | {"tooltip": told}},
        ],
    }


def _spectrum() -> Spec:
    told = [{"field": key, "title": key} for key in ("name", "index", "value")]
    log = {"type": "log", "nice": False}
    return {
        "title": "Singular values of L W R",
        "data": ROWS,
        "mark": {"type": "line", "strokeWidth": 1.4, "point": {"size": 20}},
        "encoding": {
            "x": {"field": "index", "type": "quantitative", "scale": log, "axis": {"title": "index (log)"}},
            "y": {"field": "value", "type": "quantitative", "scale": log, "axis": {"title": "value (log)"}},
            "tooltip": told,
        },
    }
