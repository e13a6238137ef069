"""Where a run's figures go: one flat record, shown on the console and written beside the run."""

from svdexp.tracking.console import show
from svdexp.tracking.provenance import commit
from svdexp.tracking.record import Results, dense_key, record

__all__ = ["Results", "commit", "dense_key", "record", "show"]
