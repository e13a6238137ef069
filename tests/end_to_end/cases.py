"""The cases of shared/cases: tiny models that a compressor can get wrong. Its README.md says what the words mean.

The folder is no part of this repository: it lies beside the checkout, or where SVDEXP_CASES says.
"""

import importlib.util
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.end_to_end.forked import Outcome, run

FOLDER = Path(os.environ.get("SVDEXP_CASES") or Path(__file__).resolve().parents[3] / "shared" / "cases")
TABLE: dict[str, Any] = tomllib.loads((FOLDER / "cases.toml").read_text()) if FOLDER.is_dir() else {}
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in TABLE.get("case", [])}


def builders() -> ModuleType:
    """build.py, which makes the models."""
    spec = importlib.util.spec_from_file_location("svdexp_case_models", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Ran:
    """What a case left: where its things lie, and how its last program ended."""

    places: dict[str, str]
    outcome: Outcome = field(default_factory=lambda: Outcome(None, ""))

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.places["run"])

    @property
    def last_line(self) -> str:
        """The last line that was printed, without the names of folders: expressions are sought in words."""
        lines = [line for line in self.outcome.output.splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        for place in sorted(self.places.values(), key=len, reverse=True):
            last = last.replace(place, "")
        return last

    @property
    def said(self) -> str:
        """All that was printed or logged."""
        logs = [path.read_text() for path in self.folder.rglob("*.log")]
        return "\n".join([self.outcome.output, *logs])


def carry_out(name: str, model_of: Callable[[str], Path], folder: Path) -> Ran:
    """Run the case called `name` in the empty `folder`; `model_of` gives the folder of a builder's model."""
    case = CASES[name]
    model = model_of(case["builder"])
    ran = Ran({"model": str(model), "texts": str(model.parent), "run": str(folder / "run")})
    if "second" in case:
        ran.places["second"] = str(model_of(case["second"]))
    if "first" in case:
        first = ran.places | {"run": str(folder / "first")}
        done = run(folder, _words(TABLE["common"]["svdexp"], case["first"], first))
        assert done.returncode == 0, done.output
        ran.places["first"] = first["run"]
    if "model" in case:
        ran.places["model"] = case["model"].format(**ran.places)
    program = case.get("program", "svdexp")
    words = _words(TABLE["common"][program], case["arguments"], ran.places)
    ran.outcome = run(folder, words, program=program, WANDB_MODE="offline")
    return ran


def _words(common: list[str], arguments: list[str], places: Mapping[str, str]) -> list[str]:
    """The command line: a later word stands in the place of an earlier one of the same key."""
    found: dict[str, str] = {}
    for word in [*common, *arguments]:
        found[word.partition("=")[0]] = word.format(**places)
    return list(found.values())


def finds(expression: str, text: str) -> bool:
    """Whether `expression` is somewhere in `text`, in capitals or not."""
    return re.search(expression, text, re.IGNORECASE) is not None
