"""The commands in processes that are forked from one that has imported everything, so that a run takes a second.

`run` is `python -m PROGRAM WORDS` in a folder. A run may be killed: at the `count`-th call of a function, before or
after it did its work.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["svdexp.__main__", "svdexp.experiment", "svdexp.sweeps.identity"])


@dataclass(frozen=True)
class Death:
    """By SIGKILL, at a call of MODULE:FUNCTION or MODULE:CLASS.METHOD."""

    where: str
    count: int = 1
    after: bool = False

    def arrange(self) -> None:
        """Replace the function in this process."""
        module, _, name = self.where.partition(":")
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        original, calls = getattr(owner, last), 0

        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < self.count:
                return original(*args, **kwargs)
            if self.after:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, last, deadly)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it printed on both channels."""

    returncode: int | None
    output: str


def run(
    folder: Path, words: Sequence[str], death: Death | None = None, program: str = "svdexp", **variables: str
) -> Outcome:
    """`python -m PROGRAM WORDS` in `folder`; keyword arguments are environment variables."""
    printed = folder / "printed.txt"
    process = CONTEXT.Process(target=_run, args=(folder, program, list(words), death, printed, variables))
    process.start()
    process.join(300)
    return Outcome(process.exitcode, printed.read_text())


def _run(
    folder: Path, program: str, words: list[str], death: Death | None, printed: Path, variables: dict[str, str]
) -> None:
    with printed.open("w") as file:
        for channel in (1, 2):
            os.dup2(file.fileno(), channel)
    os.chdir(folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | variables
    sys.argv = [program, *words]
    if death:
        death.arrange()
    package = hasattr(importlib.import_module(program), "__path__")
    # runpy warns of what has been imported already
    sys.modules.pop(f"{program}.__main__" if package else program, None)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
