"""Names of tasks, all of them lm-eval's, and the suites that stand for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from svdexp.evaluation.tasks.library import definitions, library, tags
from svdexp.runtime.errors import UserError, require


@dataclass(frozen=True)
class Task:
    """Where lm-eval keeps a task that local files can hold too, and its size, from which the work is estimated.

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


def expand(names: Sequence[str], include_path: str | None = None) -> list[str]:
    """The tasks behind `names`, each once, in the order given; groups and tags of lm-eval's stay what they are.

    `include_path` is a folder with tasks of the user's own.

    Raises:
        UserError: a name is neither a suite nor a task, or there is no such folder.
    """
    own = own_tasks(include_path)
    for name in names:
        if name not in SUITES and name not in TASKS and name not in own and not is_known(name):
            known = [*SUITES, *TASKS, *own, *definitions(library()), *tags(library())]
            begun = [task for task in (*SUITES, *TASKS, *own) if task.startswith(name)]
            near = begun or get_close_matches(name, known, n=4, cutoff=0.6)
            raise UserError(
                f"eval.tasks: no task is called {name!r}"
                + (f"; there is {', '.join(near)}" if near else "; any of lm-eval's is one: lm-eval ls tasks")
            )
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def own_tasks(include_path: str | None) -> dict[str, Path]:
    """The tasks in the user's folder, by name, with the files that define them.

    Raises:
        UserError: there is no such folder, or no task in it.
    """
    if include_path is None:
        return {}
    folder = Path(include_path).expanduser()
    require(folder.is_dir(), f"eval.include_path={include_path} is not a folder")
    found = definitions(folder)
    require(bool(found), f"eval.include_path={include_path} has no task: a .yaml with a line `task: NAME`")
    return found


def is_known(name: str) -> bool:
    """Whether lm-eval has a task, a group or a tag of this name."""
    return name in definitions(library()) or name in tags(library())
