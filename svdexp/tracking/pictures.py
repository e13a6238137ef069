"""Pictures of one run, for trackers."""

from svdexp.record.results import METHOD, RATIO
from svdexp.tracking.findings import Findings


def rank_picture(findings: Findings) -> bytes | None:
    """Ranks by block and projection, as the content of a PNG file; None where no layer is in a block."""
    from svdexp.report.heatmap import RankMap, rank_maps
    from svdexp.report.vega import png, svg

    results, ranks = findings.results, RankMap.of(findings.layers)
    if not ranks.blocks:
        return None
    return png(svg(rank_maps({f"{METHOD.of(results)} {RATIO.of(results):g}": ranks}, columns=1)))
