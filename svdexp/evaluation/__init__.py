"""What a model is worth: perplexity and speed, measured the same way for dense and compressed."""

from svdexp.evaluation.efficiency import Efficiency, measure_efficiency, require_context
from svdexp.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Efficiency", "Perplexity", "measure_efficiency", "perplexity", "require_context"]
