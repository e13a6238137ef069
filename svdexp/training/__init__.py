"""Repair by gradient descent, after truncation or after storage: factors or codes of the same size, better values.

Add one with one file here and its YAML in conf/method/training/.
"""

from svdexp.descent.descent import Curve
from svdexp.training.base import Lesson, Trained, Training, learns_stored, teach, with_text
from svdexp.training.block_refine import BlockRefine
from svdexp.training.distill import Distill
from svdexp.training.sequential_lora import SequentialLora
from svdexp.training.stored import Learner, learner
from svdexp.training.student import Student

__all__ = [
    "BlockRefine",
    "Curve",
    "Distill",
    "Learner",
    "Lesson",
    "SequentialLora",
    "Student",
    "Trained",
    "Training",
    "learner",
    "learns_stored",
    "teach",
    "with_text",
]
