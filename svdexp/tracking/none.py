"""tracker=none: results.json and the console are all there is."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from svdexp.record import Results
from svdexp.schema import Config
from svdexp.tracking.findings import Findings


@dataclass(frozen=True)
class NoTracker:
    """Tracks nothing."""

    url: ClassVar[None] = None

    def start(self, config: Config, run_dir: Path, cell: str) -> "NoTracker":
        """Nothing."""
        return self

    def stages(self, figures: Results) -> None:
        """Nothing."""

    def log(self, findings: Findings) -> None:
        """Nothing."""

    def finish(self, succeeded: bool) -> None:
        """Nothing."""
