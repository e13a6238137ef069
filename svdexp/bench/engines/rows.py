"""One engine's answers as rows of the table."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svdexp.bench.engines.environments import bare, last_line
from svdexp.bench.engines.kinds import DENSE, PERPLEXITIES, SPEEDS

HEAD = ["engine", "version", "model", "loads", "tokens equal", "perplexity, svdexp's", "the engine's"]
HEAD += [*(f"{speed} × dense" for speed in SPEEDS), "also"]
NOTHING = "–"


class Task(NamedTuple):
    """What an engine does with one model.

    Attributes:
        folder: the model.
        prompts: token ids, which are continued greedily by `tokens` tokens; no token ends a text.
        windows: token ids of which perplexity is taken, each without the ones before.
        dense: the folder of the dense model.
    """

    folder: str
    prompts: Sequence[Sequence[int]]
    tokens: int
    windows: Sequence[Sequence[int]]
    dense: str


class Answer(NamedTuple):
    """What an engine's script leaves, or why it left nothing.

    `speeds` are tokens per second, `also` is what else it has to say.
    """

    error: str | None = None
    version: str = NOTHING
    tokens: Sequence[Sequence[int]] = ()
    perplexity: float | None = None
    speeds: Mapping[str, float] = {}
    also: str = NOTHING


def answer(python: Path, script: Path, task: Task, place: Path) -> Answer:
    """Run an engine's script on one task; the task, its result and what was printed stay beside `place`."""
    given, left, log = (place.parent / f"{place.name}.{kind}" for kind in ("task.json", "result.json", "log"))
    place.parent.mkdir(parents=True, exist_ok=True)
    given.write_text(json.dumps(task._asdict()))
    left.unlink(missing_ok=True)
    with log.open("w") as said:
        call = [str(python), str(script), str(given), str(left)]
        # Not the links of a virtual environment followed: bin/ is where its own programs are.
        variables = bare(python.parent.parent)
        code = subprocess.run(call, env=variables, stdout=said, stderr=subprocess.STDOUT).returncode
    if code or not left.is_file():
        return Answer(f"exit code {code}: {last_line(log)}")
    found = json.loads(left.read_text())
    speeds = {speed: found[speed] for speed in SPEEDS if speed in found}
    return Answer(None, found["version"], found["tokens"], found.get(PERPLEXITIES), speeds, found.get("also", NOTHING))


def row(engine: str, form: str, found: Answer, ours: Mapping[str, Any], dense: Answer | None) -> list[str]:
    """The cells of HEAD.

    Args:
        engine, form: names.
        found: what the engine answered.
        ours: svdexp's own "tokens" and "perplexity" of the same model.
        dense: the same engine's answer of the dense model, if there is one.
    """
    if found.error is not None:
        return [engine, found.version, form, f"no: {found.error}", *[NOTHING] * (len(HEAD) - 4)]
    pairs = zip(ours["tokens"], found.tokens, strict=True)
    equal = sum(a == b for ours_, theirs in pairs for a, b in zip(ours_, theirs, strict=False))
    count = sum(map(len, ours["tokens"]))
    theirs = NOTHING if found.perplexity is None else f"{found.perplexity:.4f}"
    cells = [engine, found.version, form, "yes", f"{equal} of {count}", f"{ours[PERPLEXITIES]:.4f}", theirs]
    return [*cells, *(ratio(found, dense, speed) if form != DENSE else "1" for speed in SPEEDS), found.also]


def ratio(found: Answer, dense: Answer | None, speed: str) -> str:
    """How many times as many tokens per second as the dense model."""
    if dense is None or speed not in found.speeds or speed not in dense.speeds:
        return NOTHING
    return f"{found.speeds[speed] / dense.speeds[speed]:.2f}"
