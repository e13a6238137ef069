"""Repair by gradient descent, after truncation: factors of the same rank, better values.

Add one with one file here and its YAML in conf/method/training/.
"""

from svdexp.descent.descent import Curve
from svdexp.training.base import Lesson, Trained, Training, teach
from svdexp.training.block_refine import BlockRefine
from svdexp.training.distill import Distill
from svdexp.training.sequential_lora import SequentialLora
from svdexp.training.student import Student

__all__ = ["BlockRefine", "Curve", "Distill", "Lesson", "SequentialLora", "Student", "Trained", "Training", "teach"]
