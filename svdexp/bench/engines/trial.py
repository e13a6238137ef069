"""All models in all engines, top-down."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from svdexp.bench.demo import MODEL
from svdexp.bench.engines.environments import python_of
from svdexp.bench.engines.kinds import DENSE, FORMS, Engine
from svdexp.bench.engines.models import TOKENS, compressed_folder, dense_folder, material, svdexps_own
from svdexp.bench.engines.rows import HEAD, Answer, Task, answer, row
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.markdown import table
from svdexp.runtime.shelves import identity
from svdexp.schema import ModelConfig

WIDTH = 200  # of the printed table: in fewer columns words would be cut


class Made(NamedTuple):
    """The folder of a model and what svdexp says of it, or why there is none."""

    folder: Path | None = None
    said: Mapping[str, Any] = {}
    error: str | None = None


def show(engines: Mapping[str, Engine], model: str | None, keys: Sequence[str], folder: Path, scripts: Path) -> None:
    """Print the table, and write it as table.md into `folder`.

    Args:
        engines: by their names, which their folders in `scripts` have, too.
        model: the folder of a dense model; None is the demo's.
        keys: further ones of every compression.
        folder: of all that is made.
        scripts: the folder of the engines' own files.

    Raises:
        UserError: there is no dense model, or no such folder.
    """
    require(scripts.is_dir(), f"{scripts} is not there: engines run in a checkout of svdexp, not in an installed one")
    rows, drawn = [HEAD], Table(*HEAD)
    for cells in measured(engines, model, keys, folder.absolute(), scripts):
        print(" · ".join(cells), file=sys.stderr, flush=True)  # minutes may pass until the table
        rows.append(cells)
        drawn.add_row(*cells)
    Console(width=WIDTH).print(drawn)
    write_atomically(folder / "table.md", table(rows) + "\n")


def measured(
    engines: Mapping[str, Engine], model: str | None, keys: Sequence[str], folder: Path, scripts: Path
) -> Iterator[list[str]]:
    """The rows of all engines, of each the dense model's first."""
    config = MODEL if model is None else ModelConfig(DENSE, str(Path(model).absolute()))
    models = folder / "models" / identity(path=config.path)
    dense = dense_folder(config, models)
    prompts, windows = material(dense)
    made: dict[str, Made] = {}
    for name, engine in engines.items():
        answers: dict[str, Answer] = {}
        for form in (DENSE, *engine.forms):
            if form not in made:
                made[form] = found(form, dense, keys, models, prompts, windows)
            of = made[form]
            if of.folder is None:
                answers[form] = Answer(of.error)
            else:
                task = Task(str(of.folder), prompts, TOKENS, windows, str(dense))
                answers[form] = tried(engine, name, task, scripts, folder, form)
            yield row(name, form, answers[form], of.said, answers[DENSE])


def found(
    form: str,
    dense: Path,
    keys: Sequence[str],
    models: Path,
    prompts: Sequence[Sequence[int]],
    windows: Sequence[Sequence[int]],
) -> Made:
    """One model, made where it is not there yet."""
    try:
        own, given = (dense, dense) if form == DENSE else compressed_folder(FORMS[form], dense, keys, models)
        return Made(given, svdexps_own(own, prompts, windows))
    except UserError as error:
        return Made(error=str(error))


def tried(engine: Engine, name: str, task: Task, scripts: Path, folder: Path, form: str) -> Answer:
    """What an engine makes of a task."""
    try:
        python = python_of(engine, scripts / name, folder / "environments" / name)
    except UserError as error:
        return Answer(str(error))
    return answer(python, scripts / name / "run.py", task, folder / "answers" / f"{name}-{form}")
