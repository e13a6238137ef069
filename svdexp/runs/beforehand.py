"""What is known of a cell before anything is computed, wherever it will run."""

from svdexp.cells.identity import files_behind
from svdexp.method import build, build_method
from svdexp.runs.checks import check_inputs
from svdexp.runs.evaluation import check_measured, find
from svdexp.schema import Config, EvaluateConfig


def check_cell(config: Config | EvaluateConfig) -> None:
    """Raise UserError for what a run or an evaluation refuses before it looks at its device: parts, paths, options."""
    if isinstance(config, Config):
        build(config.tracker, "tracker")
        check_inputs(config, build_method(config))
    else:
        check_measured(config.eval, find(config.model))
    files_behind(config)
