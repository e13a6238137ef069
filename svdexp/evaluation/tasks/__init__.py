"""The tasks that accuracies are measured on: names and suites, our definitions over local files, lm-eval's own."""

from svdexp.evaluation.tasks.exam import Exam, check_tasks, load_exams, task_files
from svdexp.evaluation.tasks.names import SUITES, TASKS, expand

__all__ = ["SUITES", "TASKS", "Exam", "check_tasks", "expand", "load_exams", "task_files"]
