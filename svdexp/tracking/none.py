"""tracker=none: results.json and the console are all there is."""

from dataclasses import dataclass
from pathlib import Path

from svdexp.schema import Config
from svdexp.tracking.findings import Findings


@dataclass(frozen=True)
class NoTracker:
    """Tracks nothing."""

    def start(self, config: Config, run_dir: Path) -> "NoTracker":
        """Nothing."""
        return self

    def log(self, findings: Findings) -> None:
        """Nothing."""

    def finish(self, succeeded: bool) -> None:
        """Nothing."""
