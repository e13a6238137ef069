"""The commands in processes that are forked from one that has imported everything, so that a run takes a second.

`run` is `python -m PROGRAM WORDS` in a folder. A run may be killed: at the `count`-th call of a function, before or
after it did its work.
"""

import importlib
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra._internal.hydra import Hydra

from tests.support.warm import CONTEXT


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
    """How a run ended, and what it printed."""

    returncode: int | None
    stdout: str
    stderr: str = ""

    @property
    def output(self) -> str:
        """What it printed on both channels, mistakes last."""
        return self.stdout + self.stderr


def run(
    folder: Path, words: Sequence[str], death: Death | None = None, program: str = "svdexp", **variables: str
) -> Outcome:
    """`python -m PROGRAM WORDS` in `folder`, without a hub; keyword arguments are environment variables.

    A variable that a library reads while it is imported was read before: such a run needs an interpreter of its own.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | variables
    with TemporaryDirectory() as printed:
        channels = [Path(printed) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_run, args=(folder, program, list(words), death, channels, environment))
        process.start()
        process.join()  # without a limit, which a busy machine would reach
        return Outcome(process.exitcode, *(path.read_text() for path in channels))


def _run(
    folder: Path,
    program: str,
    words: list[str],
    death: Death | None,
    channels: Sequence[Path],
    environment: dict[str, str],
) -> None:
    for number, path in enumerate(channels, start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *words]
    warnings.filterwarnings("error", category=DeprecationWarning, module=r"svdexp|hydra_plugins")  # as in pytest
    if not any("hydra.mode" in word for word in words):
        # Hydra composes everything twice, to find out that nothing sets it: tests/test_config.py
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    if death:
        death.arrange()
    package = hasattr(importlib.import_module(program), "__path__")
    # runpy warns of what has been imported already
    sys.modules.pop(f"{program}.__main__" if package else program, None)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
