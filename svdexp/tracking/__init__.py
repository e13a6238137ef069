"""Where a run's figures go: one flat record, shown on the console and written beside the run."""

from svdexp.tracking.console import show, show_one
from svdexp.tracking.provenance import commit
from svdexp.tracking.record import Results, circumstances, dense_key, record

__all__ = ["Results", "circumstances", "commit", "dense_key", "record", "show", "show_one"]
