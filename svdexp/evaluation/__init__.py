"""What a model is worth: perplexity and speed, measured the same way for dense and compressed."""

from svdexp.evaluation.efficiency import Efficiency, measure_efficiency, require_context
from svdexp.evaluation.passage import Passage, Protocol, check_texts, passage, protocols
from svdexp.evaluation.perplexity import NotFiniteError, Perplexity, perplexity

__all__ = [
    "Efficiency",
    "NotFiniteError",
    "Passage",
    "Perplexity",
    "Protocol",
    "check_texts",
    "measure_efficiency",
    "passage",
    "perplexity",
    "protocols",
    "require_context",
]
