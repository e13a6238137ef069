"""An engine's own Python: a virtual environment made once of its pinned requirements."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from svdexp.bench.engines.kinds import Engine
from svdexp.runtime.errors import UserError

MADE = "made"  # the file that says of what a finished environment was made


def python_of(engine: Engine, scripts: Path, folder: Path) -> Path:
    """The Python that runs `engine`, whose own files are in `scripts`; its environment is made in `folder`.

    Raises:
        UserError: it cannot be made; what pip said is in a file beside it.
    """
    if not engine.install:
        return Path(sys.executable)
    python, wanted = folder / "bin" / "python", recipe(engine, scripts)
    made = folder / MADE
    if made.is_file() and made.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{folder}.log")
    with log.open("w") as said:
        steps = [[sys.executable, "-m", "venv", str(folder)]]
        steps += [[str(python), "-m", "pip", *words] for words in engine.install]
        for step in steps:
            done = subprocess.run(step, cwd=scripts, env=bare(folder), stdout=said, stderr=subprocess.STDOUT)
            if done.returncode:
                raise UserError(f"its environment cannot be made: {last_line(log)}")
    made.write_text(wanted)
    return python


def recipe(engine: Engine, scripts: Path) -> str:
    """Everything that an environment is made of, as text."""
    files = [f"{path.name}:\n{path.read_text()}" for path in sorted(scripts.glob("*.txt"))]
    return "\n".join([sys.version, repr(engine.install), *files])


def bare(folder: Path) -> dict[str, str]:
    """This process's variables without what would let svdexp, or another environment's files, into an engine's."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PATH": f"{folder / 'bin'}{os.pathsep}{kept.get('PATH', '')}", "HF_HUB_OFFLINE": "1"}


def last_line(log: Path) -> str:
    """The last line of a log that says something: of a traceback, the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
