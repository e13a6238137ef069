"""A run as it goes: one line for each stage that has ended, with its number, its time and what was estimated."""

import logging
from collections.abc import Collection, Mapping, Sequence

from svdexp.estimate.forecast import Forecast
from svdexp.estimate.table import duration, gigabytes
from svdexp.method import Method
from svdexp.runtime.words import FILE_ONLY
from svdexp.schema import Save, Traversal

log = logging.getLogger(__name__)

LABELS = {
    "load": "loading",
    "evaluate_dense": "dense model evaluated",
    "usage": "layers watched at work",
    "search": "sizes tried",
    "evaluate": "compressed model evaluated",
    "save": "checkpoint saved and loaded again",
}
BLOCK_BY_BLOCK = ("calibration", "factorisation", "search", "update", "storage")  # in a blockwise run
# Block by block in any run; and factors are put in their places before they are trained, and stored thereafter.
AROUND_STORAGE = (("update", "storage"), ("training", "storage"))


class Narration:
    """Follows a run's stages, in their order; of several processes only the main one's log is heard.

    Stages may alternate, such as block by block: one has ended when another begins that it does not alternate with.
    """

    def __init__(
        self, order: Sequence[str], alternating: Sequence[Collection[str]] = (), labels: Mapping[str, str] | None = None
    ) -> None:
        self.order, self.labels = list(order), {**LABELS, **(labels or {})}
        self.alternating = [frozenset(stages) for stages in alternating]
        self.expected: dict[str, float] = {}
        self.told: set[str] = set()

    def expect(self, forecast: Forecast) -> None:
        """Compare from here on with an estimate, which is told: in full in the log file, in one line on the console."""
        self.expected = {row.name: forecast.machine.speed.seconds(row.work) for row in forecast.rows}
        log.info("%s", forecast.text, extra=FILE_ONLY)
        whole, peak = duration(forecast.seconds), gigabytes(forecast.bytes)
        log.info("estimated: %s and %s on %s, less what the cache spares", whole, peak, forecast.machine.name)

    def begins(self, stage: str, seconds: Mapping[str, float]) -> None:
        """A stage begins, the seconds of all being these: those before it have ended."""
        if stage not in self.order:
            return
        for before in self.order[: self.order.index(stage)]:
            if not any({before, stage} <= stages for stages in self.alternating):
                self.tell(before, seconds)

    def ends(self, seconds: Mapping[str, float]) -> None:
        """All stages have ended."""
        for stage in self.order:
            self.tell(stage, seconds)
        estimate = f" (estimated {duration(sum(self.expected.values()))})" if self.expected else ""
        log.info("done in %s%s", duration(sum(seconds.values())), estimate)

    def tell(self, stage: str, seconds: Mapping[str, float]) -> None:
        """The line of a stage, once."""
        if stage in self.told:
            return
        self.told.add(stage)
        number = f"[{self.order.index(stage) + 1}/{len(self.order)}]"
        log.info("%s %s … %s", number, self.labels.get(stage, stage), self.compared(seconds.get(stage), stage))

    def compared(self, took: float | None, stage: str) -> str:
        """The time of a stage, with the estimate unless both are next to nothing."""
        if took is None:
            return "nothing to do"
        foreseen = self.expected.get(stage)
        told = foreseen is not None and max(took, foreseen) >= 1
        return duration(took) + (f" (estimated {duration(foreseen)})" if foreseen is not None and told else "")


def narrate(method: Method, save: Save, *, searches: bool = False) -> Narration:
    """Of a run of `method`, which `searches` for its ratio."""
    needed = {
        "calibration": bool(method.weighting and (method.weighting.needs or method.storage.needs)),
        "factorisation": method.weighting is not None,
        "update": method.update is not None,
        "training": bool(method.training),
        "search": searches,
        "save": save is not Save.none,
    }
    # storage last of what changes the model: it waits for training, and some of it for the finished model
    order = ("load", "evaluate_dense", "usage", "calibration", "factorisation", "search", "allocation")
    stages = [
        stage for stage in (*order, "update", "training", "storage", "evaluate", "save") if needed.get(stage, True)
    ]
    blockwise = method.traversal is Traversal.blockwise
    return Narration(stages, (BLOCK_BY_BLOCK, *AROUND_STORAGE) if blockwise else AROUND_STORAGE)
