"""Load tasks, from local files or as lm-eval's own from the hub, and draw the rows that are asked."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from svdexp.evaluation.tasks.library import definitions, library
from svdexp.evaluation.tasks.local import find_file, local_parts
from svdexp.evaluation.tasks.names import TASKS, expand, own_tasks
from svdexp.runtime import words
from svdexp.runtime.contents import digest
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.shelves import identity
from svdexp.schema import EvalConfig

log = logging.getLogger(__name__)


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
        recipe: of a task that only lm-eval knows, its configuration; its figures are lm-eval's own.
        groups: lm-eval's groups that it was asked for as a part of and that pool figures.
        beside: of a task of the user's own, a hash of all files beside its definition: its functions may call others,
            and read what lies there.
    """

    name: str
    parts: Mapping[str, Any]
    rows: Mapping[str, list[int]]
    of: int
    num_fewshot: int
    seed: int
    source: str
    recipe: Mapping[str, Any] | None = None
    groups: tuple[Any, ...] = ()
    beside: str | None = None

    @property
    def version(self) -> str:
        """lm-eval's version of the task."""
        return str(next(iter(self.parts.values())).VERSION)

    @property
    def asks_likelihoods(self) -> bool:
        """Whether rows are answered by log-likelihoods, and not by what the model writes."""
        return all(task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood") for task in self.parts.values())

    @property
    def writes(self) -> bool:
        """Whether the model writes answers to it, token by token."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.parts.values())

    def describe(self) -> dict[str, Any]:
        """What results.json says about it."""
        return {
            "version": self.version,
            "num_fewshot": self.num_fewshot,
            "rows": sum(map(len, self.rows.values())),
            "of": self.of,
            "source": self.source,
        } | ({"groups": [group.name for group in self.groups]} if self.groups else {})


def check_tasks(part: EvalConfig) -> None:
    """Raise UserError now for a mistake that loading would find later: cheap, and never downloads."""
    for name in expand(part.tasks, part.include_path):
        source_files(name, part)


def task_files(part: EvalConfig) -> dict[str, list[Path]]:
    """The local files of the tasks that have any, by task.

    Raises:
        UserError: as in `source_files`.
    """
    found = {name: source_files(name, part) for name in expand(part.tasks, part.include_path)}
    own = {name: own_files(part.include_path) for name in found.keys() & own_tasks(part.include_path).keys()}
    return own | {name: [file for file in files if file] for name, files in found.items() if files}


def own_files(include_path: str | None) -> list[Path]:
    """All files beside the user's own tasks: definitions, functions, and data that lie there."""
    folder = Path(str(include_path)).expanduser()
    hidden = ("__pycache__", ".")
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(hidden) for part in path.relative_to(folder).parts))


def contents_of_own(include_path: str | None) -> str:
    """A hash of the user's own tasks: of what all files beside them hold."""
    folder = Path(str(include_path)).expanduser()
    return identity(files={str(path.relative_to(folder)): digest(path, None) for path in own_files(include_path)})


def load_exams(part: EvalConfig, seed: int) -> list[Exam]:
    """The tasks of `eval.tasks`, in order, with the rows that `eval.limit` and the seed leave.

    Raises:
        UserError: unknown task, missing or damaged file, too few examples, or an unreachable hub.
    """
    exams, names, own = [], expand(part.tasks, part.include_path), own_tasks(part.include_path)
    beside = contents_of_own(part.include_path) if own.keys() & set(names) else None
    for name in names:
        if name in TASKS and name not in own:
            exams.append(load_exam(name, part, seed))
        else:
            found = library_exams(name, own.get(name), part, seed)
            exams += [replace(exam, beside=beside) for exam in found] if name in own else found
    for exam in exams:
        asked = sum(map(len, exam.rows.values()))
        log.info("%s: %s of its rows", exam.name, f"all {asked}" if asked == exam.of else f"{asked} of {exam.of}")
    return exams


def load_exam(name: str, part: EvalConfig, seed: int) -> Exam:
    """The task `name`, one of TASKS; see `load_exams`."""
    files = source_files(name, part)
    with quiet():
        parts = local_parts(name, *files) if files else hub_parts(name)
    return drawn(name, parts, part, seed, part.num_fewshot or 0, str(files[0]) if files else "hub")


def library_exams(name: str, defined: Path | None, part: EvalConfig, seed: int) -> list[Exam]:
    """What lm-eval calls `name`, by its own definition or by the user's, `defined` in a file: a group is its tasks."""
    files = source_files(name, part)
    with quiet():
        found, groups = lm_eval_tasks(name, defined, files)
    exams = []
    for key, task in found.items():
        require(not getattr(task, "UNSAFE_CODE", False), f"eval.tasks: {key} runs code that a model writes; not here")
        own = task.config.num_fewshot or 0
        shots = own if part.num_fewshot is None else part.num_fewshot
        source = str(files[0] if files else defined or "hub")
        exam = drawn(key, {key: task}, part, seed, shots, source)
        own_groups = tuple(group for group in groups if task in group.get_all_tasks())
        exams.append(replace(exam, recipe=task.dump_config(), groups=own_groups))
    return exams


def drawn(name: str, parts: Mapping[str, Any], part: EvalConfig, seed: int, shots: int, source: str) -> Exam:
    """The rows of a task that are asked, after `shots` examples each.

    Raises:
        UserError: there are too few examples.
    """
    sizes = {key: len(task.eval_docs) for key, task in parts.items()}
    rows = draw_rows(sizes, part.limit, Random(f"{name} {seed}"))
    for key in rows:
        if shots and (found := len(list(parts[key].fewshot_docs()))) < shots:
            raise UserError(f"eval.num_fewshot={shots}, but {key} has {found} examples")
        parts[key].set_config(key="num_fewshot", value=shots)
    asked = {key: parts[key] for key in rows}
    return Exam(name, asked, rows, sum(sizes.values()), shots, seed, source)


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
        if part.tasks_dir is None or name in own_tasks(part.include_path):
            return None
        raise UserError(f"eval.tasks_dir={part.tasks_dir} has no {name}/test.jsonl and no {name}/test.jsonl.gz")
    if not part.num_fewshot and name in TASKS:
        return test, None
    dev = find_file(folder, name, "dev")
    if dev is None and name in TASKS:
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
    with loading(name, " from the hub"):
        found: dict[str, Any] = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"]
    return found


def lm_eval_tasks(
    name: str, defined: Path | None, files: tuple[Path, Path | None] | None
) -> tuple[dict[str, Any], list[Any]]:
    """lm-eval's task objects of any name, their rows downloaded or, in the layout of their own data set, from `files`;
    and its groups that pool figures of them.

    Raises:
        UserError: the data cannot be had, or a library that the task needs.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml  # what follows `include:`, too

    where = defined or definitions(library()).get(name)
    spec: Any = name
    if files and where:
        test, dev = files
        rows = {"test": str(test)} | ({"dev": str(dev)} if dev else {})
        spec = {
            **load_yaml(where, resolve_func=True),
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": rows},
            "test_split": "test",
            "validation_split": None,
            "training_split": None,
            "fewshot_split": "dev" if dev else None,
        }
    with loading(name):
        # its own folder alone, where that has it; what stands for several needs all
        tasks: Any = TaskManager(include_path=str(where.parent), include_defaults=False) if where else None
        if tasks is None or name not in tasks.all_subtasks:
            tasks = every_task(defined.parent if defined else None)
        found = tasks.load([spec])
    known = {group.name: group for one in found["groups"].values() for group in (one, *one.get_all_groups())}
    return found["tasks"], [group for group in known.values() if group.has_aggregation]


@cache
def every_task(beside: Path | None) -> Any:
    """lm-eval's index of all of its thousands of tasks, which takes seconds, and of those in the folder `beside`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(beside) if beside else None)


@contextmanager
def loading(name: str, whence: str = "") -> Iterator[None]:
    """Within this context a task is loaded; whatever goes wrong is one sentence."""
    try:
        yield
    except Exception as error:  # datasets raises a dozen types for an unreachable or unknown data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the task {name} cannot be loaded{whence} ({reason}); eval.tasks_dir=FOLDER reads {name}/test.jsonl"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's remarks, and without its progress bars where nobody watches."""
    with ExitStack() as stack:
        stack.enter_context(words.quiet("lm_eval", logging.ERROR))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        yield
