"""Where a run's figures go: one flat record, shown on the console, written beside the run, and given to a tracker.

Add a tracker with one file here, its YAML in conf/tracker/, and a line below.
"""

from svdexp.record import Results
from svdexp.tracking.console import show, show_one
from svdexp.tracking.csv_tracker import CsvTracker
from svdexp.tracking.findings import Findings
from svdexp.tracking.layers import layer_rows
from svdexp.tracking.narration import Narration, narrate
from svdexp.tracking.none import NoTracker
from svdexp.tracking.provenance import commit
from svdexp.tracking.record import circumstances, identified, record
from svdexp.tracking.tensorboard_tracker import TensorBoardTracker
from svdexp.tracking.tracker import Telling, Tracker, complete, tracked
from svdexp.tracking.wandb_tracker import WandbTracker

__all__ = [
    "CsvTracker",
    "Findings",
    "Narration",
    "NoTracker",
    "Results",
    "Telling",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "circumstances",
    "commit",
    "complete",
    "identified",
    "layer_rows",
    "narrate",
    "record",
    "show",
    "show_one",
    "tracked",
]
