"""What a model is worth: perplexity, accuracies and speed, measured the same way for dense and compressed."""

from svdexp.evaluation.accuracy import accuracies
from svdexp.evaluation.efficiency import Efficiency, measure_efficiency
from svdexp.evaluation.generation import continuations
from svdexp.evaluation.perplexity import Perplexity, perplexity
from svdexp.evaluation.tasks import Exam, check_tasks, load_exams

__all__ = [
    "Efficiency",
    "Exam",
    "Perplexity",
    "accuracies",
    "check_tasks",
    "continuations",
    "load_exams",
    "measure_efficiency",
    "perplexity",
]
