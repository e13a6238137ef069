"""Load tasks, from local files or as lm-eval's own from the hub, and draw the rows that are asked."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from svdexp.evaluation.tasks.local import find_file, local_parts
from svdexp.evaluation.tasks.names import TASKS, expand
from svdexp.runtime.errors import UserError
from svdexp.schema import EvalConfig


@dataclass(frozen=True)
class Exam:
    """One task and the rows of it that are asked, the same for every model.

    Attributes:
        name: the task.
        parts: lm-eval's task objects by name: one, or for mmlu one per subject.
        rows: of each part, which are asked, ascending; a part without any is left out.
        of: how many rows the task has.
        num_fewshot: examples before each question.
        seed: draws rows and, where lm-eval draws them, examples.
        source: the file, or "hub".
    """

    name: str
    parts: Mapping[str, Any]
    rows: Mapping[str, list[int]]
    of: int
    num_fewshot: int
    seed: int
    source: str

    @property
    def version(self) -> str:
        """lm-eval's version of the task."""
        return str(next(iter(self.parts.values())).VERSION)

    def describe(self) -> dict[str, Any]:
        """What results.json says about it."""
        return {
            "version": self.version,
            "num_fewshot": self.num_fewshot,
            "rows": sum(map(len, self.rows.values())),
            "of": self.of,
            "source": self.source,
        }


def check_tasks(part: EvalConfig) -> None:
    """Raise UserError now for a mistake that loading would find later: cheap, and never downloads."""
    for name in expand(part.tasks):
        source_files(name, part)


def task_files(part: EvalConfig) -> dict[str, list[Path]]:
    """The local files of the tasks that have any, by task.

    Raises:
        UserError: as in `source_files`.
    """
    found = {name: source_files(name, part) for name in expand(part.tasks)}
    return {name: [file for file in files if file] for name, files in found.items() if files}


def load_exams(part: EvalConfig, seed: int) -> list[Exam]:
    """The tasks of `eval.tasks`, in order, with the rows that `eval.limit` and the seed leave.

    Raises:
        UserError: unknown task, missing or damaged file, too few examples, or an unreachable hub.
    """
    return [load_exam(name, part, seed) for name in expand(part.tasks)]


def load_exam(name: str, part: EvalConfig, seed: int) -> Exam:
    """The task `name`; see `load_exams`."""
    files = source_files(name, part)
    with quiet():
        parts = local_parts(name, *files) if files else hub_parts(name)
    sizes = {key: len(task.eval_docs) for key, task in parts.items()}
    rows = draw_rows(sizes, part.limit, Random(f"{name} {seed}"))
    shots = part.num_fewshot or 0
    for key in rows:
        if shots and (found := len(list(parts[key].fewshot_docs()))) < shots:
            raise UserError(f"eval.num_fewshot={shots}, but {key} has {found} examples")
        parts[key].set_config(key="num_fewshot", value=shots)
    asked = {key: parts[key] for key in rows}
    return Exam(name, asked, rows, sum(sizes.values()), shots, seed, str(files[0]) if files else "hub")


def draw_rows(sizes: Mapping[str, int], limit: int | None, random: Random) -> dict[str, list[int]]:
    """Which rows of each part: all, or `limit` drawn evenly over all parts together."""
    places = [(part, row) for part, size in sizes.items() for row in range(size)]
    if limit is not None and limit < len(places):
        places = [places[i] for i in sorted(random.sample(range(len(places)), limit))]
    rows: dict[str, list[int]] = {}
    for part, row in places:
        rows.setdefault(part, []).append(row)
    return rows


def source_files(name: str, part: EvalConfig) -> tuple[Path, Path | None] | None:
    """The files of a local task, with the one of its few-shot examples if any are wanted; None for the hub.

    `eval.tasks_dir` must have the task; $SVDEXP_DATA/tasks, which is looked at without it, may.

    Raises:
        UserError: no such folder or file.
    """
    if part.tasks_dir is not None:
        folder = Path(part.tasks_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"eval.tasks_dir={part.tasks_dir} is not a folder")
    elif data := os.environ.get("SVDEXP_DATA"):
        folder = Path(data) / "tasks"
    else:
        return None
    test = find_file(folder, name, "test")
    if test is None:
        if part.tasks_dir is None:
            return None
        raise UserError(f"eval.tasks_dir={part.tasks_dir} has no {name}/test.jsonl and no {name}/test.jsonl.gz")
    if not part.num_fewshot:
        return test, None
    dev = find_file(folder, name, "dev")
    if dev is None:
        raise UserError(f"eval.num_fewshot={part.num_fewshot} takes examples from {name}/dev.jsonl, not in {folder}")
    return test, dev


def hub_parts(name: str) -> dict[str, Any]:
    """lm-eval's own task objects, their data downloaded.

    Raises:
        UserError: the data cannot be had.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    # Its own folder alone: indexing all of lm-eval's thousands takes seconds.
    folder = Path(lm_eval.__file__).parent / "tasks" / TASKS[name].folder
    try:
        found: dict[str, Any] = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"]
    except Exception as error:  # datasets raises a dozen types for an unreachable or unknown data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the task {name} cannot be loaded from the hub ({reason}); eval.tasks_dir=FOLDER reads {name}/test.jsonl"
        ) from error
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's remarks, and without its progress bars where nobody watches."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            yield
        finally:
            logger.setLevel(level)
