"""What no other beats in two figures at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from svdexp.report.vega import Spec


def front(gains: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The indices that no other beats in both: from the one of most gain to the one of least loss."""
    best, found = np.inf, []
    for index in sorted(range(len(gains)), key=lambda i: (-gains[i], losses[i])):
        if losses[index] < best:
            best = losses[index]
            found.append(index)
    return found


def band(points: Sequence[dict[str, Any]], *, steps: str, x: Spec, y: Spec) -> Spec:
    """A layer of a picture that joins `points`, in their order; `steps` says on which side of each it turns."""
    return {
        "data": {"values": [{"x": point["x"], "y": point["y"], "order": i} for i, point in enumerate(points)]},
        "mark": {"type": "line", "interpolate": f"step-{steps}", "style": "front"},
        "encoding": {"x": x, "y": y, "order": {"field": "order", "type": "quantitative"}},
    }
