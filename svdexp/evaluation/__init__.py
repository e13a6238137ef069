"""What a model is worth: perplexity, accuracies and speed, measured the same way for dense and compressed."""

from svdexp.evaluation.accuracy import accuracies
from svdexp.evaluation.efficiency import Efficiency, measure_efficiency, require_context
from svdexp.evaluation.figures import evaluate, kept_perplexity
from svdexp.evaluation.generation import continuations
from svdexp.evaluation.passage import (
    Passage,
    TextProtocol,
    captions_passage,
    check_texts,
    passage,
    passage_of,
    protocols,
    reading_of,
)
from svdexp.evaluation.perplexity import NotFiniteError, Perplexity, perplexity
from svdexp.evaluation.tasks import Exam, check_tasks, load_exams, task_files

__all__ = [
    "Efficiency",
    "Exam",
    "NotFiniteError",
    "Passage",
    "Perplexity",
    "TextProtocol",
    "accuracies",
    "captions_passage",
    "check_tasks",
    "check_texts",
    "continuations",
    "evaluate",
    "kept_perplexity",
    "load_exams",
    "measure_efficiency",
    "passage",
    "passage_of",
    "perplexity",
    "protocols",
    "reading_of",
    "require_context",
    "task_files",
]
