"""Names of tasks, all of them lm-eval's, and the suites that stand for several."""

from collections.abc import Sequence
from dataclasses import dataclass

from svdexp.runtime.errors import UserError


@dataclass(frozen=True)
class Task:
    """Where lm-eval keeps the task, and its size, from which the work is estimated.

    Attributes:
        folder: below lm_eval/tasks.
        rows: of the split that is evaluated.
        passes: forward passes per row; choices of a single token share one.
        tokens: mean length of a pass, at four characters a token.
    """

    folder: str
    rows: int
    passes: int
    tokens: int


TASKS = {
    "arc_easy": Task("arc", 2376, 4, 40),
    "arc_challenge": Task("arc", 1172, 4, 45),
    "openbookqa": Task("openbookqa", 500, 4, 20),
    "winogrande": Task("winogrande", 1267, 2, 25),
    "hellaswag": Task("hellaswag", 10042, 4, 90),
    "piqa": Task("piqa", 1838, 2, 40),
    "mathqa": Task("mathqa", 2985, 5, 50),
    "mmlu": Task("mmlu/default", 14042, 1, 140),
    "boolq": Task("super_glue/boolq", 3270, 1, 160),
}

# The seven tasks of SVD-LLM (2403.07378) and of most papers after it.
SUITES = {
    "commonsense": ("arc_easy", "arc_challenge", "openbookqa", "winogrande", "hellaswag", "piqa", "mathqa"),
}


def expand(names: Sequence[str]) -> list[str]:
    """The tasks behind `names`, each once, in the order given.

    Raises:
        UserError: a name is neither a suite nor a task.
    """
    for name in names:
        if name not in SUITES and name not in TASKS:
            raise UserError(
                f"eval.tasks: no task is called {name!r}; "
                f"choose from the suite {', '.join(SUITES)} and the tasks {', '.join(TASKS)}"
            )
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))
